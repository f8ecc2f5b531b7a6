// Quantizing with errors compensated: what rounding one weight does to a product is made good by the weights of the row
// that are not rounded yet. GPTQ (Frantar et al. 2022, arXiv 2210.17323) with ggml's blocks: ggml chooses a block's
// scales, from the weights as they have become by then; its codes are chosen here, one after the other.
#pragma once

#include <cstdint>

namespace emoe {

// Weights of one block of the type. Throws EMOE_ERR_ARGUMENT for a type that ggml cannot quantize to.
uint32_t block_weights(int type);
uint64_t block_bytes(int type);

// Rounds one block of n_row rows. weights: [n_row][block], on return what each column's rounding leaves to be made good:
// the caller subtracts weights x factor's rows from the columns behind. factor: [block][block], the upper triangle of
// this block of the Cholesky factor of the inverse of the inputs' second moments. importance: [block], for the scales.
// Throws EMOE_ERR_FORMAT for values that no block can hold.
void compensate_block(int type, float *weights, const float *factor, const float *importance, uint64_t n_row,
                      uint8_t *out);

} // namespace emoe
