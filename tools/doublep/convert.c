/* convert.c: the command `doublep convert`: lists the tensors that a Llama model of the config's shape has, writes them
 * under their GGUF names in the wanted type, to a temporary file that takes its place when it is whole. */
#include "convert.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert_config.h"
#include "convert_tokenizer.h"
#include "gguf_writer.h"
#include "safetensors.h"

typedef struct options {
    const char *folder, *out, *name, *license;
    quant_type type;
} options;

/* A tensor to be written: rows of a source, or values of our own. */
typedef struct output {
    char name[64];
    const safetensors_tensor *source;
    float *values; /* owned; where source is NULL */
    uint64_t rows, columns; /* rows is 0 for a vector */
    quant_type type;
    uint32_t rotary_rows; /* rows of a head that change to interleaved pairs; 0: none do */
} output;

typedef struct converter {
    const options *options;
    convert_config config;
    safetensors *tensors;
    output *outputs;
    size_t n_outputs;
    gguf_writer *writer;
    char error[512];
} converter;

__attribute__((format(printf, 2, 3))) static bool fail(converter *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->error, sizeof c->error, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- Which tensors ---- */

/* The matrices and norms of a block: their names in GGUF, in the short form and in Hugging Face's. */
static const struct {
    const char *gguf, *short_name, *hugging_face;
} block_tensors[] = {
    {"attn_norm", "attn_norm", "input_layernorm.weight"},
    {"attn_q", "q.weight", "self_attn.q_proj.weight"},
    {"attn_k", "k.weight", "self_attn.k_proj.weight"},
    {"attn_v", "v.weight", "self_attn.v_proj.weight"},
    {"attn_output", "o.weight", "self_attn.o_proj.weight"},
    {"ffn_norm", "ffn_norm", "post_attention_layernorm.weight"},
    {"ffn_gate", "gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up", "up.weight", "mlp.up_proj.weight"},
    {"ffn_down", "down.weight", "mlp.down_proj.weight"},
};
enum { N_BLOCK_TENSORS = sizeof block_tensors / sizeof block_tensors[0] };

/* Adds a tensor; rows = 0 means a vector, which stays f32. */
static bool add(converter *c, const char *name, const char *source, uint64_t rows, uint64_t columns)
{
    const safetensors_tensor *t = safetensors_find(c->tensors, source);
    if (!t) return fail(c, "%s: tensor '%s' is missing", c->options->folder, source);
    const uint64_t first = rows ? rows : columns, second = rows ? columns : 1;
    if (t->n_dims != (rows ? 2 : 1) || t->dims[0] != first || t->dims[1] != second)
        return fail(c, "%s: tensor '%s' is %llu x %llu, must be %llu x %llu", c->options->folder, source,
                    (unsigned long long)t->dims[0], (unsigned long long)t->dims[1], (unsigned long long)first,
                    (unsigned long long)second);
    const quant_type type = rows ? c->options->type : QUANT_F32;
    if (columns % quant_get_layout(type)->block)
        return fail(c, "tensor '%s': rows of %llu elements cannot be %s", source, (unsigned long long)columns,
                    quant_get_layout(type)->name);
    output *o = &c->outputs[c->n_outputs++];
    *o = (output){.source = t, .rows = rows, .columns = columns, .type = type};
    snprintf(o->name, sizeof o->name, "%s", name);
    return true;
}

static bool add_block(converter *c, uint32_t block)
{
    const convert_config *config = &c->config;
    const uint64_t width = config->width, q = (uint64_t)config->heads * config->head_dim,
                   kv = (uint64_t)config->kv_heads * config->head_dim, ffn = config->ffn_width;
    const uint64_t shapes[N_BLOCK_TENSORS][2] = {{0, width},  {q, width},   {kv, width},  {kv, width}, {width, q},
                                                 {0, width}, {ffn, width}, {ffn, width}, {width, ffn}};
    for (size_t i = 0; i < N_BLOCK_TENSORS; i++) {
        char name[64], source[96];
        snprintf(name, sizeof name, "blk.%u.%s.weight", block, block_tensors[i].gguf);
        if (config->hugging_face)
            snprintf(source, sizeof source, "model.layers.%u.%s", block, block_tensors[i].hugging_face);
        else
            snprintf(source, sizeof source, "blocks.%u.%s", block, block_tensors[i].short_name);
        if (!add(c, name, source, shapes[i][0], shapes[i][1])) return false;
        const bool rotates = i == 1 || i == 2;
        if (rotates && config->hugging_face) c->outputs[c->n_outputs - 1].rotary_rows = config->head_dim;
    }
    return true;
}

static bool add_rope_factors(converter *c)
{
    const uint32_t pairs = c->config.head_dim / 2;
    if (c->config.rope_factor == 0) return true;
    output *o = &c->outputs[c->n_outputs++];
    *o = (output){.name = "rope_freqs.weight", .columns = pairs, .type = QUANT_F32};
    o->values = malloc(pairs * sizeof *o->values);
    if (!o->values) return fail(c, "no memory");
    for (uint32_t i = 0; i < pairs; i++) o->values[i] = (float)convert_rope_factor(&c->config, i);
    return true;
}

/* A tensor that is not used would be a part of the model that is silently lost (a bias, say). */
static bool check_all_used(converter *c)
{
    for (size_t i = 0; i < safetensors_count(c->tensors); i++) {
        const safetensors_tensor *t = safetensors_at(c->tensors, i);
        bool used = strstr(t->name, "rotary_emb.inv_freq") != NULL || /* follows from the config */
                    (c->config.tied && strcmp(t->name, "lm_head.weight") == 0);
        for (size_t o = 0; o < c->n_outputs && !used; o++) used = c->outputs[o].source == t;
        if (!used)
            return fail(c, "%s: tensor '%s' is no part of a Llama model of the config's shape", c->options->folder,
                        t->name);
    }
    return true;
}

static bool list_tensors(converter *c)
{
    const convert_config *config = &c->config;
    const bool hf = config->hugging_face;
    c->outputs = calloc((size_t)config->layers * N_BLOCK_TENSORS + 4, sizeof *c->outputs);
    if (!c->outputs) return fail(c, "no memory");
    if (!add(c, "token_embd.weight", hf ? "model.embed_tokens.weight" : "emb.weight", config->vocab, config->width))
        return false;
    for (uint32_t i = 0; i < config->layers; i++)
        if (!add_block(c, i)) return false;
    return add(c, "output_norm.weight", hf ? "model.norm.weight" : "norm", 0, config->width) &&
           (config->tied || add(c, "output.weight", "lm_head.weight", config->vocab, config->width)) &&
           add_rope_factors(c) && check_all_used(c);
}

/* ---- Writing ---- */

static void write_config(const converter *c)
{
    const convert_config *config = &c->config;
    gguf_writer *w = c->writer;
    static const struct {
        quant_type type;
        uint32_t file_type; /* as GGUF numbers them */
    } file_types[] = {{QUANT_F32, 0}, {QUANT_F16, 1}, {QUANT_Q8_0, 7}, {QUANT_BF16, 32}};
    gguf_writer_string(w, "general.architecture", "llama");
    gguf_writer_string(w, "general.type", "model");
    gguf_writer_string(w, "general.name", c->options->name);
    if (c->options->license) gguf_writer_string(w, "general.license", c->options->license);
    gguf_writer_u32(w, "general.alignment", 32);
    gguf_writer_u32(w, "general.quantization_version", 2);
    for (size_t i = 0; i < sizeof file_types / sizeof file_types[0]; i++)
        if (file_types[i].type == c->options->type) gguf_writer_u32(w, "general.file_type", file_types[i].file_type);
    gguf_writer_u32(w, "llama.vocab_size", config->vocab);
    gguf_writer_u32(w, "llama.context_length", config->context);
    gguf_writer_u32(w, "llama.embedding_length", config->width);
    gguf_writer_u32(w, "llama.block_count", config->layers);
    gguf_writer_u32(w, "llama.feed_forward_length", config->ffn_width);
    gguf_writer_u32(w, "llama.attention.head_count", config->heads);
    gguf_writer_u32(w, "llama.attention.head_count_kv", config->kv_heads);
    gguf_writer_u32(w, "llama.attention.key_length", config->head_dim);
    gguf_writer_u32(w, "llama.attention.value_length", config->head_dim);
    gguf_writer_f32(w, "llama.attention.layer_norm_rms_epsilon", (float)config->epsilon);
    gguf_writer_u32(w, "llama.rope.dimension_count", config->head_dim);
    gguf_writer_f32(w, "llama.rope.freq_base", (float)config->rope_base);
}

/* The source's row that becomes row `row`. Hugging Face rotates element i of a head with i + n / 2, GGUF's llama 2 i
 * with 2 i + 1. */
static uint64_t source_row(const output *o, uint64_t row)
{
    const uint64_t n = o->rotary_rows;
    if (n == 0) return row;
    const uint64_t in_head = row % n;
    return row - in_head + in_head / 2 + in_head % 2 * (n / 2);
}

static bool write_tensor(converter *c, const output *o)
{
    if (!o->source) {
        gguf_writer_data(c->writer, o->values, o->columns * sizeof *o->values);
        return true;
    }
    const size_t n = (size_t)o->columns;
    const quant_layout *from = quant_get_layout(o->source->type), *to = quant_get_layout(o->type);
    const size_t from_bytes = n / from->block * from->block_bytes, to_bytes = n / to->block * to->block_bytes;
    float *values = malloc(n * sizeof *values);
    unsigned char *row = malloc(to_bytes);
    bool ok = (values && row) || fail(c, "no memory for a row of %zu elements", n);
    for (uint64_t i = 0; ok && i < (o->rows ? o->rows : 1); i++) {
        quant_to_f32(o->source->type, (const unsigned char *)o->source->data + source_row(o, i) * from_bytes, n,
                     values);
        ok = quant_from_f32(o->type, values, n, row) ||
             fail(c, "tensor '%s' has values that %s cannot hold", o->source->name, to->name);
        if (ok) gguf_writer_data(c->writer, row, to_bytes);
    }
    free(values);
    free(row);
    return ok;
}

static bool write_all(converter *c, FILE *file)
{
    c->writer = gguf_writer_create(file);
    if (!c->writer) return fail(c, "no memory");
    write_config(c);
    if (!convert_tokenizer(c->options->folder, &c->config, c->writer, c->error, sizeof c->error)) return false;
    for (size_t i = 0; i < c->n_outputs; i++) {
        const output *o = &c->outputs[i];
        gguf_writer_tensor(c->writer, o->name, o->rows ? 2 : 1, (const uint64_t[]){o->columns, o->rows}, o->type);
    }
    gguf_writer_header(c->writer);
    for (size_t i = 0; i < c->n_outputs; i++)
        if (!write_tensor(c, &c->outputs[i])) return false;
    return gguf_writer_finish(c->writer) || fail(c, "%s: cannot be written: %s", c->options->out, strerror(errno));
}

/* Writes beside `out` and renames: whoever opens `out` sees a whole file or none. */
static bool write_file(converter *c)
{
    const char *out = c->options->out;
    char *temporary;
    if (asprintf(&temporary, "%s.XXXXXX", out) < 0) return fail(c, "no memory");
    const int descriptor = mkstemp(temporary);
    FILE *file = descriptor >= 0 ? fdopen(descriptor, "wb") : NULL;
    bool ok = file != NULL || fail(c, "%s: %s", out, strerror(errno));
    if (file) {
        const mode_t mask = umask(0);
        umask(mask);
        ok = (fchmod(descriptor, 0666 & ~mask) == 0 || fail(c, "%s: %s", out, strerror(errno))) && write_all(c, file);
        if (fclose(file) != 0 && ok) ok = fail(c, "%s: %s", out, strerror(errno));
        if (ok && rename(temporary, out) != 0) ok = fail(c, "%s: %s", out, strerror(errno));
    } else if (descriptor >= 0) {
        close(descriptor);
    }
    if (!ok && descriptor >= 0) unlink(temporary);
    free(temporary);
    return ok;
}

/* ---- The command ---- */

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    static const quant_type offered[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q8_0};
    options *o = state->input;
    switch (key) {
    case 't':
        for (size_t i = 0; i < sizeof offered / sizeof offered[0]; i++) {
            if (strcmp(argument, quant_get_layout(offered[i])->name) == 0) {
                o->type = offered[i];
                return 0;
            }
        }
        argp_error(state, "unknown type '%s' (f32, f16, bf16 or q8_0)", argument);
        return EINVAL;
    case 'n': o->name = argument; return 0;
    case 'l': o->license = argument; return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0) o->folder = argument;
        else if (state->arg_num == 1) o->out = argument;
        else argp_usage(state);
        return 0;
    case ARGP_KEY_END:
        if (state->arg_num < 2) argp_usage(state);
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int cmd_convert(int argc, char **argv)
{
    static const struct argp_option argp_options[] = {
        {"type", 't', "TYPE", 0, "Type of the matrices: f32, f16 (default), bf16 or q8_0. Norms stay f32.", 0},
        {"name", 'n', "NAME", 0, "general.name in the file; default: the folder's name", 0},
        {"license", 'l', "TEXT", 0, "general.license in the file; default: none", 0},
        {0},
    };
    static const struct argp argp = {
        .options = argp_options,
        .parser = parse_option,
        .args_doc = "FOLDER OUT.gguf",
        .doc = "Converts a Llama model from a folder of safetensors (with config.json and a byte-level BPE "
               "tokenizer.json, as Hugging Face keeps them) to a GGUF file.",
    };
    options o = {.type = QUANT_F16};
    if (argp_parse(&argp, argc, argv, 0, NULL, &o) != 0) return EXIT_FAILURE;
    char *resolved = realpath(o.folder, NULL);
    if (!resolved) {
        fprintf(stderr, "%s: %s: %s\n", argv[0], o.folder, strerror(errno));
        return EXIT_FAILURE;
    }
    if (!o.name) o.name = basename(resolved);

    converter c = {.options = &o};
    const bool ok = convert_read_config(o.folder, &c.config, c.error, sizeof c.error) &&
                    (c.tensors = safetensors_open(o.folder, c.error, sizeof c.error)) != NULL && list_tensors(&c) &&
                    write_file(&c);
    if (!ok) fprintf(stderr, "%s: %s\n", argv[0], c.error);
    for (size_t i = 0; i < c.n_outputs; i++) free(c.outputs[i].values);
    free(c.outputs);
    gguf_writer_free(c.writer);
    safetensors_close(c.tensors);
    free(resolved);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
