/* Writes the inputs that the fuzz targets start from: `fuzz_seeds FOLDER`, which has the folders gguf, snapshot, tokenizer. */
#include <stdbool.h>

#include "fuzz.h"
#include "gguf_writer.h"
#include "kv/snapshot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    (void)data, (void)size;
    return 0;
}

static const char *root;

static FILE *create(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", root, name);
    FILE *const file = fopen(path, "wb");
    MUST(file != NULL);
    return file;
}

/* A whole model of one layer, in `type` where a row is long enough. */
static void write_model(const char *name, const char *pre, quant_type type, uint64_t width)
{
    enum { VOCAB = 12, FFN = 32 };
    static const char *const words[VOCAB] = {"<s>", "</s>", "a", "b", "c", "ab", "\xc4\xa0", "\xc4\xa0z", "abc", "1", "\xc3\xa9", "z"};
    static const char *const merges[] = {"a b", "\xc4\xa0 z", "ab c"};
    static const int32_t types[VOCAB] = {3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4};
    gguf_string tokens[VOCAB], pairs[3];
    for (int i = 0; i < VOCAB; i++) tokens[i] = (gguf_string){words[i], strlen(words[i])};
    for (int i = 0; i < 3; i++) pairs[i] = (gguf_string){merges[i], strlen(merges[i])};
    FILE *const file = create(name);
    gguf_writer *const w = gguf_writer_create(file);
    gguf_writer_string(w, "general.architecture", "llama");
    gguf_writer_u32(w, "llama.block_count", 1);
    gguf_writer_u32(w, "llama.embedding_length", (uint32_t)width);
    gguf_writer_u32(w, "llama.feed_forward_length", FFN);
    gguf_writer_u32(w, "llama.context_length", 64);
    gguf_writer_u32(w, "llama.attention.head_count", 2);
    gguf_writer_u32(w, "llama.attention.head_count_kv", 1);
    gguf_writer_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_writer_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_writer_string(w, "tokenizer.ggml.pre", pre);
    gguf_writer_strings(w, "tokenizer.ggml.tokens", tokens, VOCAB);
    gguf_writer_i32s(w, "tokenizer.ggml.token_type", types, VOCAB);
    gguf_writer_strings(w, "tokenizer.ggml.merges", pairs, 3);
    gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", 0);
    gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", 1);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", true);
    const uint64_t half = width / 2;
    const struct {
        const char *name;
        uint64_t row, rows;
    } tensors[] = {{"token_embd.weight", width, VOCAB},      {"output_norm.weight", width, 0},
                   {"blk.0.attn_norm.weight", width, 0},     {"blk.0.ffn_norm.weight", width, 0},
                   {"blk.0.attn_q.weight", width, width},    {"blk.0.attn_k.weight", width, half},
                   {"blk.0.attn_v.weight", width, half},     {"blk.0.attn_output.weight", width, width},
                   {"blk.0.ffn_gate.weight", width, FFN},    {"blk.0.ffn_up.weight", width, FFN},
                   {"blk.0.ffn_down.weight", FFN, width}};
    const size_t n = sizeof tensors / sizeof *tensors;
    size_t bytes[16];
    for (size_t i = 0; i < n; i++) {
        const bool vector = !tensors[i].rows;
        const quant_type kind = vector ? QUANT_F32 : type;
        const uint64_t dims[2] = {tensors[i].row, vector ? 1 : tensors[i].rows};
        const quant_layout *const layout = quant_get_layout(kind);
        bytes[i] = (size_t)(dims[0] / layout->block * layout->block_bytes * dims[1]);
        gguf_writer_tensor(w, tensors[i].name, vector ? 1 : 2, dims, kind);
    }
    gguf_writer_header(w);
    static const unsigned char zeros[1 << 16];
    for (size_t i = 0; i < n; i++) gguf_writer_data(w, zeros, bytes[i]);
    MUST(gguf_writer_finish(w));
    gguf_writer_free(w);
    fclose(file);
}

/* A snapshot as fuzz_snapshot.c reads it: without what lies between the tables and the segments. */
static void write_snapshot(const char *name, dp_type type, uint32_t tokens, bool index, const char *note)
{
    enum { HEADS = 2, DIM = 8, MOST = 400, PAGE = 1 << 16 };
    static float k[MOST * DIM], v[MOST * DIM];
    for (uint32_t i = 0; i < MOST * DIM; i++) k[i] = (float)(i * 7919 % 64) / 32 - 1, v[i] = (float)(i % 5);
    dp_runtime *const rt = small_runtime(0);
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_query_heads = HEADS;
    config.key_dim = config.value_dim = DIM;
    config.type = type;
    config.window = 8;
    config.segment_tokens = 64;
    config.pending_tokens = 64;
    dp_sequence *s;
    MUST(dp_sequence_create(rt, &config, &s) == DP_OK);
    MUST(!index || dp_observe_queries(s, 0, 1, k) == DP_OK);
    MUST(!tokens || dp_append(s, 0, tokens, k, 0, v, 0) == DP_OK);
    MUST(!index || dp_build_index(s, 0) == DP_OK);
    char path[4096];
    snprintf(path, sizeof path, "%s/snapshot.tmp", root);
    MUST(dp_sequence_save(s, path, note, strlen(note)) == DP_OK);
    dp_sequence_free(s);
    dp_runtime_free(rt);

    static char file[1 << 20];
    FILE *const saved = fopen(path, "rb");
    MUST(saved != NULL);
    const size_t size = fread(file, 1, sizeof file, saved);
    fclose(saved);
    unlink(path);
    size_t first = size < PAGE ? size : PAGE;
    while (size > PAGE && first && !file[first - 1]) first--;
    FILE *const out = create(name);
    fputc((int)(first & 255), out);
    fputc((int)(first >> 8), out);
    fwrite(file, 1, first, out);
    if (size > PAGE) fwrite(file + PAGE, 1, size - PAGE, out);
    fclose(out);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2) return fprintf(stderr, "usage: fuzz_seeds FOLDER\n"), 2;
    root = argv[1];
    write_model("gguf/f32", "gpt-2", QUANT_F32, 8);
    write_model("gguf/bf16", "llama-bpe", QUANT_BF16, 8);
    write_model("gguf/q8_0", "smollm", QUANT_Q8_0, 32);
    write_snapshot("snapshot/empty", DP_F32, 0, false, "");
    write_snapshot("snapshot/waiting", DP_BF16, 30, false, "note");
    write_snapshot("snapshot/indexed", DP_F16, 150, true, "");
    write_snapshot("snapshot/f32", DP_F32, 90, true, "");
    static const char *const texts[] = {"It's 2024, we'LL see:\n\n  x = y_1 + 3.25;\t\xc3\xa9\xc2\xa0\xe4\xb8\xad\xf0\x9f\x99\x82",
                                        "<|bos|>a<|eos|>\xff\xc3", "                        ", "the needle is 4863728."};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char name[64];
        snprintf(name, sizeof name, "tokenizer/text%zu", i);
        FILE *const out = create(name);
        fputs(texts[i], out);
        fclose(out);
    }
    return 0;
}
