/* model.c: loading a model: its metadata first, then every tensor, each checked against the shape. See model.h. */
#include "model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rope.h"

/* What loading carries around: the model under construction, how many of the file's tensors it took, the message. */
typedef struct loader {
    model *m;
    size_t n_used;
    char *error;
    size_t error_size;
} loader;

__attribute__((format(printf, 2, 3))) static bool fail(const loader *l, const char *format, ...)
{
    const int n = snprintf(l->error, l->error_size, "%s: ", gguf_path(l->m->file));
    if (n > 0 && (size_t)n < l->error_size) {
        va_list args;
        va_start(args, format);
        vsnprintf(l->error + n, l->error_size - (size_t)n, format, args);
        va_end(args);
    }
    return false;
}

static bool get_u32(const loader *l, const char *key, uint32_t min, uint32_t max, uint32_t *value)
{
    uint64_t wide = 0;
    if (!gguf_get_u64(l->m->file, key, min, max, &wide, l->error, l->error_size))
        return false;
    *value = (uint32_t)wide;
    return true;
}

/* A key that may be missing: then *value stays. */
static bool get_optional_u32(const loader *l, const char *key, uint32_t min, uint32_t max, uint32_t *value)
{
    return !gguf_find(l->m->file, key) || get_u32(l, key, min, max, value);
}

static bool get_optional_f64(const loader *l, const char *key, double min, double max, double *value)
{
    return !gguf_find(l->m->file, key) || gguf_get_f64(l->m->file, key, min, max, value, l->error, l->error_size);
}

static bool string_is(gguf_string s, const char *text)
{
    return s.length == strlen(text) && memcmp(s.data, text, s.length) == 0;
}

static bool read_rope(const loader *l)
{
    model_shape *const s = &l->m->shape;
    double factor = 1;
    s->rope_dims = s->key_dim;
    s->rope_base = 10000;
    if (!get_optional_u32(l, "llama.rope.dimension_count", 2, s->key_dim, &s->rope_dims) ||
        !get_optional_f64(l, "llama.rope.freq_base", 1, 1e12, &s->rope_base) ||
        !get_optional_f64(l, "llama.rope.scale_linear", 1e-3, 1e6, &factor))
        return false;
    if (s->rope_dims % 2 != 0)
        return fail(l, "llama.rope.dimension_count is %u, must be even", s->rope_dims);
    if (gguf_find(l->m->file, "llama.rope.scaling.type")) {
        gguf_string type;
        if (!gguf_get_string(l->m->file, "llama.rope.scaling.type", &type, l->error, l->error_size))
            return false;
        if (string_is(type, "linear")) {
            if (!get_optional_f64(l, "llama.rope.scaling.factor", 1e-3, 1e6, &factor))
                return false;
        } else if (!string_is(type, "none")) {
            return fail(l, "rope scaling of type \"%.*s\" is not supported (linear is, and rope_freqs.weight)",
                        (int)(type.length < 40 ? type.length : 40), type.data);
        }
    }
    s->rope_position_scale = 1 / factor;
    return true;
}

static bool read_heads(const loader *l)
{
    model_shape *const s = &l->m->shape;
    if (!get_u32(l, "llama.attention.head_count", 1, 1024, &s->n_heads))
        return false;
    s->n_kv_heads = s->n_heads;
    if (!get_optional_u32(l, "llama.attention.head_count_kv", 1, s->n_heads, &s->n_kv_heads))
        return false;
    if (s->n_heads % s->n_kv_heads != 0)
        return fail(l, "%u query heads are not a multiple of %u KV heads", s->n_heads, s->n_kv_heads);
    s->key_dim = s->value_dim = s->width / s->n_heads;
    if (!gguf_find(l->m->file, "llama.attention.key_length") && s->width % s->n_heads != 0)
        return fail(l, "the embedding length %u is not a multiple of %u heads", s->width, s->n_heads);
    if (!get_optional_u32(l, "llama.attention.key_length", 1, 65536, &s->key_dim) ||
        !get_optional_u32(l, "llama.attention.value_length", 1, 65536, &s->value_dim))
        return false;
    if (s->key_dim % 8 != 0 || s->key_dim < 8 || s->key_dim > 512 || s->value_dim % 8 != 0 || s->value_dim < 8 ||
        s->value_dim > 512)
        return fail(l, "heads of %u (keys) and %u (values) elements; must be a multiple of 8, 8 to 512", s->key_dim,
                    s->value_dim);
    return true;
}

static bool read_shape(const loader *l)
{
    model_shape *const s = &l->m->shape;
    gguf_string architecture;
    if (!gguf_get_string(l->m->file, "general.architecture", &architecture, l->error, l->error_size))
        return false;
    if (!string_is(architecture, "llama"))
        return fail(l, "architecture \"%.*s\" is not supported, only llama is",
                    (int)(architecture.length < 40 ? architecture.length : 40), architecture.data);
    uint32_t n_experts = 0;
    double epsilon = 0;
    if (!get_u32(l, "llama.block_count", 1, 4096, &s->n_layers) ||
        !get_u32(l, "llama.embedding_length", 1, 1 << 20, &s->width) ||
        !get_u32(l, "llama.feed_forward_length", 1, 1 << 22, &s->ffn_width) ||
        !get_u32(l, "llama.context_length", 1, UINT32_MAX, &s->n_context) || !read_heads(l) || !read_rope(l) ||
        !gguf_get_f64(l->m->file, "llama.attention.layer_norm_rms_epsilon", 0, 1, &epsilon, l->error, l->error_size) ||
        !get_optional_u32(l, "llama.expert_count", 0, UINT32_MAX, &n_experts))
        return false;
    if (n_experts != 0)
        return fail(l, "mixtures of experts are not supported (llama.expert_count is %u)", n_experts);
    s->norm_epsilon = (float)epsilon;
    s->n_vocab = (uint32_t)tokenizer_vocab_size(l->m->tokenizer);
    return true;
}

/* The tensor `name` where it is a [rows][cols] matrix (rows = 1: a vector); NULL and a message otherwise. */
static const gguf_tensor *find_tensor(loader *l, const char *name, uint64_t cols, uint64_t rows)
{
    const gguf_tensor *const t = gguf_find_tensor(l->m->file, name);
    if (!t) {
        fail(l, "tensor %s is missing", name);
        return NULL;
    }
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1) {
        fail(l, "tensor %s is %llu x %llu x %llu x %llu, must be %llu x %llu", name, (unsigned long long)t->dims[0],
             (unsigned long long)t->dims[1], (unsigned long long)t->dims[2], (unsigned long long)t->dims[3],
             (unsigned long long)cols, (unsigned long long)rows);
        return NULL;
    }
    l->n_used++;
    return t;
}

static bool load_vector(loader *l, const char *name, size_t n, float **vector)
{
    const gguf_tensor *const t = find_tensor(l, name, n, 1);
    if (!t)
        return false;
    *vector = malloc(n * sizeof(float));
    if (!*vector)
        return fail(l, "out of memory");
    l->m->weight_bytes += n * sizeof(float);
    return gguf_tensor_to_f32(t, 0, 1, *vector) || fail(l, "tensor %s cannot be read", name);
}

/* One linear layer out of up to three matrices [rows[i]][n_in], one below the other. */
static bool load_linear(loader *l, size_t n_in, size_t n_tensors, const gguf_tensor *const *tensors,
                        linear_weights **weights)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        if (!tensors[i])
            return false;
        n_out += tensors[i]->dims[1];
    }
    float *const plain = malloc(n_in * n_out * sizeof(float));
    if (!plain)
        return fail(l, "out of memory (%zu bytes of weights)", n_in * n_out * sizeof(float));
    float *dst = plain;
    bool whole = true;
    for (size_t i = 0; i < n_tensors; i++) {
        const int64_t n_rows = (int64_t)tensors[i]->dims[1];
#pragma omp parallel for reduction(&& : whole)
        for (int64_t r = 0; r < n_rows; r++)
            whole = gguf_tensor_to_f32(tensors[i], (uint64_t)r, 1, dst + (size_t)r * n_in) && whole;
        dst += (size_t)n_rows * n_in;
    }
    if (!whole) {
        free(plain);
        return fail(l, "tensor %s cannot be read", tensors[0]->name);
    }
    char reason[256];
    *weights = linear_weights_create(n_in, n_out, plain, reason, sizeof(reason));
    free(plain);
    if (!*weights)
        return fail(l, "%s", reason);
    l->m->weight_bytes += linear_weights_bytes(*weights);
    return true;
}

static const gguf_tensor *find_in_layer(loader *l, uint32_t layer, const char *part, uint64_t cols, uint64_t rows)
{
    char name[64];
    snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, part);
    return find_tensor(l, name, cols, rows);
}

static bool load_layer(loader *l, uint32_t i)
{
    const model_shape *const s = &l->m->shape;
    model_layer *const layer = &l->m->layers[i];
    const uint64_t q = model_q_width(s), k = model_k_width(s), v = model_v_width(s);
    const uint64_t attended = (uint64_t)s->n_heads * s->value_dim;
    char name[64];
    snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", i);
    if (!load_vector(l, name, s->width, &layer->attention_norm))
        return false;
    snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", i);
    if (!load_vector(l, name, s->width, &layer->ffn_norm))
        return false;
    const gguf_tensor *qkv[3] = {0}, *gate_up[2] = {0};
    const gguf_tensor *output = NULL, *down = NULL;
    return (qkv[0] = find_in_layer(l, i, "attn_q", s->width, q)) &&
           (qkv[1] = find_in_layer(l, i, "attn_k", s->width, k)) &&
           (qkv[2] = find_in_layer(l, i, "attn_v", s->width, v)) && load_linear(l, s->width, 3, qkv, &layer->qkv) &&
           (output = find_in_layer(l, i, "attn_output", attended, s->width)) &&
           load_linear(l, attended, 1, &output, &layer->output) &&
           (gate_up[0] = find_in_layer(l, i, "ffn_gate", s->width, s->ffn_width)) &&
           (gate_up[1] = find_in_layer(l, i, "ffn_up", s->width, s->ffn_width)) &&
           load_linear(l, s->width, 2, gate_up, &layer->gate_up) &&
           (down = find_in_layer(l, i, "ffn_down", s->ffn_width, s->width)) &&
           load_linear(l, s->ffn_width, 1, &down, &layer->down);
}

static bool load_rope(loader *l)
{
    const model_shape *const s = &l->m->shape;
    const size_t n_pairs = s->rope_dims / 2;
    float *factors = NULL;
    l->m->rope_frequencies = malloc(n_pairs * sizeof(double));
    if (!l->m->rope_frequencies)
        return fail(l, "out of memory");
    if (gguf_find_tensor(l->m->file, "rope_freqs.weight") && !load_vector(l, "rope_freqs.weight", n_pairs, &factors)) {
        free(factors);
        return false;
    }
    bool valid = true;
    for (size_t i = 0; factors && i < n_pairs; i++)
        valid = valid && isfinite(factors[i]) && factors[i] > 0;
    if (valid)
        rope_frequencies(s->rope_dims, s->rope_base, s->rope_position_scale, factors, l->m->rope_frequencies);
    free(factors);
    return valid || fail(l, "rope_freqs.weight holds a factor that is not positive and finite");
}

static bool load_weights(loader *l)
{
    model *const m = l->m;
    const model_shape *const s = &m->shape;
    m->layers = calloc(s->n_layers, sizeof(*m->layers));
    if (!m->layers)
        return fail(l, "out of memory");
    m->embedding = find_tensor(l, "token_embd.weight", s->width, s->n_vocab);
    if (!m->embedding || !load_vector(l, "output_norm.weight", s->width, &m->output_norm) || !load_rope(l))
        return false;
    const gguf_tensor *logits = m->embedding; /* tied, unless the file has an output matrix */
    if (gguf_find_tensor(m->file, "output.weight"))
        logits = find_tensor(l, "output.weight", s->width, s->n_vocab);
    if (!load_linear(l, s->width, 1, &logits, &m->logits))
        return false;
    for (uint32_t i = 0; i < s->n_layers; i++)
        if (!load_layer(l, i))
            return false;
    /* Anything that is left (biases, norms of queries and keys) would change the result if it were passed over. */
    if (l->n_used != gguf_n_tensors(m->file))
        return fail(l, "has %zu tensors where a plain Llama model of its shape has %zu", gguf_n_tensors(m->file),
                    l->n_used);
    return true;
}

model *model_load(const char *path, char *error, size_t error_size)
{
    gguf_file *const file = gguf_open(path, error, error_size);
    if (!file)
        return NULL;
    model *const m = calloc(1, sizeof(*m));
    if (!m) {
        snprintf(error, error_size, "out of memory");
        gguf_close(file);
        return NULL;
    }
    m->file = file;
    m->tokenizer = tokenizer_create(file, error, error_size);
    loader l = {m, 0, error, error_size};
    if (!m->tokenizer || !read_shape(&l) || !load_weights(&l)) {
        model_free(m);
        return NULL;
    }
    return m;
}

void model_free(model *m)
{
    if (!m)
        return;
    for (uint32_t i = 0; m->layers && i < m->shape.n_layers; i++) {
        model_layer *const layer = &m->layers[i];
        free(layer->attention_norm);
        free(layer->ffn_norm);
        linear_weights_free(layer->qkv);
        linear_weights_free(layer->output);
        linear_weights_free(layer->gate_up);
        linear_weights_free(layer->down);
    }
    free(m->layers);
    linear_weights_free(m->logits);
    free(m->rope_frequencies);
    free(m->output_norm);
    tokenizer_free(m->tokenizer);
    gguf_close(m->file);
    free(m);
}
