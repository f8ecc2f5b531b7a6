// Stock llama.cpp's greedy answer to a prompt of ids, for ./dev cross: ours must have the same ids on the same
// processor. Arguments: MODEL CPU_LIBRARY N_IDS, then the ids: the prompt's, of which N_IDS is the number, then any
// others, of which only the number counts: as many are generated. Prints as `embed-c --tokens` does.
#include <ggml-backend.h>
#include <llama.h>

#include <stdio.h>
#include <stdlib.h>

enum { N_CTX = 512 };

static llama_token likeliest(const float *logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc - 4 > N_CTX) return fprintf(stderr, "usage: stock_answer MODEL CPU_LIBRARY N_IDS ID...\n"), 2;
    llama_token ids[N_CTX];
    int const n_all = argc - 4;
    int const n_prompt = atoi(argv[3]);
    if (n_prompt < 1 || n_prompt > n_all) return fprintf(stderr, "%d ids are no prompt\n", n_prompt), 2;
    for (int i = 0; i < n_prompt; i++) ids[i] = atoi(argv[4 + i]);

    if (ggml_backend_load(argv[2]) == NULL) return fprintf(stderr, "%s cannot be loaded\n", argv[2]), 1;
    llama_backend_init();
    struct llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = false; // as EdgeMoE has it (docs/seam.md)
    struct llama_model *model = llama_model_load_from_file(argv[1], model_params);
    if (model == NULL) return fprintf(stderr, "%s cannot be loaded\n", argv[1]), 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = N_CTX;
    params.n_threads = params.n_threads_batch = 2;
    struct llama_context *context = llama_init_from_model(model, params);
    if (context == NULL) return fprintf(stderr, "no context\n"), 1;

    int const n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_batch batch = llama_batch_get_one(ids, n_prompt);
    for (int n = n_prompt; n < n_all; n++) {
        if (llama_decode(context, batch) != 0) return fprintf(stderr, "decoding failed\n"), 1;
        ids[n] = likeliest(llama_get_logits_ith(context, -1), n_vocab);
        batch = llama_batch_get_one(&ids[n], 1);
    }
    printf("tokens:");
    for (int i = 0; i < n_all; i++) printf(" %d", ids[i]);
    printf("\n");
    llama_free(context);
    llama_model_free(model);
    return 0;
}
