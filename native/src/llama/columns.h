// Several tokens in one graph, of one sequence or of several, each rounded as if it were decoded alone.
//
// ggml's products take other kernels for two columns than for one, and its attention divides a long KV cache among
// the threads for one query only. Everything else treats tokens one by one. In a graph of this kind the dense
// products go column by column through the kernel that a single column meets (a row of weights is loaded once for all
// of them), and long attention runs query by query, each over the cells that its token's own graph would show; so the logits equal those of decoding the tokens one at a time.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emoe {

// From 8 rows an expert on ggml's batched kernels round otherwise (llama/kernels.cpp).
constexpr uint32_t k_max_columns = 7;

class Columns {
public:
    Columns();
    ~Columns();

    // Before a graph of one token: it is noted what its nodes do, and which of its products have one column.
    void begin_learning();
    // Before a graph of a few tokens of one sequence after n_past[0] others, or of one token each of several sequences.
    void begin(std::vector<uint32_t> n_past);
    // Every node in turn. What cannot be computed so leaves its reason in `violation`.
    void see(ggml_tensor *node, std::string *violation);
    // After it is computed: the nodes get back what they were, since llama.cpp uses a graph again.
    void end();
    bool on() const { return mode_ != Mode::off; }

private:
    enum class Mode { off, learn, columns };
    struct Work; // a rewritten node
    class Attention;
    static void compute(ggml_tensor *dst, int ith, int nth, void *work);
    void rewrite(ggml_tensor *node);

    Mode mode_ = Mode::off;
    std::vector<uint32_t> n_past_;             // by sequence of this graph
    uint32_t n_product_ = 0;                   // MUL_MAT nodes of this graph so far
    std::vector<char> single_;                 // by MUL_MAT node of a graph of one token: it has one column
    std::vector<ggml_op> ops_;                 // by node of such a graph
    size_t n_node_ = 0;                        // of this graph so far
    std::vector<std::unique_ptr<Work>> works_; // reused from graph to graph
    uint32_t n_work_ = 0;                      // in this graph
    std::unique_ptr<Attention> attention_;     // made when first needed
};

} // namespace emoe
