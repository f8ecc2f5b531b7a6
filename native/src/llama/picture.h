// A picture as a model reads it: tokens of text around rows of embeddings, which a picture encoder makes. The encoder is a
// GGUF file of its own (mmproj), in memory for as long as the picture is encoded.
#pragma once

#include <llama.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace emoe {

struct Picture {
    struct Part {
        std::vector<int32_t> tokens; // text; empty: rows
        uint32_t n_row = 0;
        uint32_t n_position = 0; // that the text behind it is further on; with M-RoPE fewer than rows
        bool causal = true;      // a row does not see those behind it
        std::vector<float> rows; // [n_row][width of the model's input]
        // [n_row], of M-RoPE, at position 0 of the sequence and how each moves with it; empty: one after another
        std::vector<std::array<llama_pos, 4>> at, moves;
    };
    std::vector<Part> parts;

    uint64_t bytes() const; // of the rows
};

// Where rows first to first + n of a part are when it begins at `begin`, as llama_batch wants it: [sections][n].
std::vector<llama_pos> positions_of(const Picture::Part &part, uint32_t first, uint32_t n, llama_pos begin);

// Bytes that encoding takes: of the encoder's weights, and beside them of its buffers with a picture of common size.
struct EncoderSizes {
    uint64_t weight_bytes = 0;
    uint64_t buffer_bytes = 0;
};
// Reads the headers of an encoder's file. Throws EMOE_ERR_IO, EMOE_ERR_FORMAT, EMOE_ERR_UNSUPPORTED.
EncoderSizes measure_encoder(const std::string &path);

// bytes: a file of JPEG, PNG or another kind that stb_image reads. most_rows: that the model can read at once; where it
// must, a larger picture is made smaller. room: told all the bytes that are taken from there on, before they are; throws
// where there are not as many. Throws EMOE_ERR_ARGUMENT for what is no picture, EMOE_ERR_UNSUPPORTED and so on.
Picture encode_picture(const std::string &encoder, const llama_model *model, const uint8_t *bytes, uint64_t n_bytes,
                       uint32_t n_threads, uint32_t most_rows, const std::function<void(uint64_t)> &room);

} // namespace emoe
