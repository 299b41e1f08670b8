/* llama_reference.c: see llama_reference.h. */
#include "llama_reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *allocate(size_t n, size_t size)
{
    void *const p = calloc(n, size);
    if (!p) {
        fprintf(stderr, "no memory for the reference\n");
        exit(1);
    }
    return p;
}

static double number(const gguf_file *file, const char *key)
{
    char error[256];
    double value = 0;
    if (!gguf_get_f64(file, key, 0, 1e12, &value, error, sizeof(error))) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    return value;
}

/* A tensor in double; layer < 0: the name is whole. */
static double *tensor(const gguf_file *file, int layer, const char *part)
{
    char name[64];
    if (layer < 0)
        snprintf(name, sizeof(name), "%s", part);
    else
        snprintf(name, sizeof(name), "blk.%d.%s.weight", layer, part);
    const gguf_tensor *const t = gguf_find_tensor(file, name);
    if (!t) {
        fprintf(stderr, "%s is missing\n", name);
        exit(1);
    }
    const size_t n = t->n_elements;
    float *const narrow = allocate(n, sizeof(float));
    double *const wide = allocate(n, sizeof(double));
    if (!gguf_tensor_to_f32(t, 0, n / t->dims[0], narrow))
        exit(1);
    for (size_t i = 0; i < n; i++)
        wide[i] = (double)narrow[i];
    free(narrow);
    return wide;
}

static void multiply(const double *w, size_t n_out, size_t n_in, const double *x, double *y)
{
    for (size_t o = 0; o < n_out; o++) {
        double sum = 0;
        for (size_t i = 0; i < n_in; i++)
            sum += w[o * n_in + i] * x[i];
        y[o] = sum;
    }
}

static void normalise(const double *weight, size_t n, double epsilon, const double *x, double *y)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] / sqrt(sum / (double)n + epsilon) * weight[i];
}

static void rotate(double *head, size_t head_dim, size_t position, double base)
{
    for (size_t i = 0; i < head_dim; i += 2) {
        const double angle = (double)position / pow(base, (double)i / (double)head_dim);
        const double even = head[i], odd = head[i + 1];
        head[i] = even * cos(angle) - odd * sin(angle);
        head[i + 1] = even * sin(angle) + odd * cos(angle);
    }
}

/* One query head over keys and values 0 .. n - 1, `stride` elements apart. */
static void attend(const double *q, const double *k, const double *v, size_t n, size_t stride, size_t head_dim,
                   double *out)
{
    double *const weights = allocate(n, sizeof(double));
    double max = -INFINITY, total = 0;
    for (size_t t = 0; t < n; t++) {
        for (size_t j = 0; j < head_dim; j++)
            weights[t] += q[j] * k[t * stride + j];
        weights[t] /= sqrt((double)head_dim);
        max = fmax(max, weights[t]);
    }
    for (size_t t = 0; t < n; t++)
        total += weights[t] = exp(weights[t] - max);
    for (size_t j = 0; j < head_dim; j++) {
        out[j] = 0;
        for (size_t t = 0; t < n; t++)
            out[j] += weights[t] / total * v[t * stride + j];
    }
    free(weights);
}

/* x: [n_tokens][width], the residual stream. */
static void run_layer(llama_reference *r, const gguf_file *file, size_t layer, double *x)
{
    enum { ATTENTION_NORM, Q, K, V, OUTPUT, FFN_NORM, GATE, UP, DOWN, N_TENSORS };
    static const char *const parts[N_TENSORS] = {"attn_norm", "attn_q",   "attn_k", "attn_v",  "attn_output",
                                                 "ffn_norm",  "ffn_gate", "ffn_up", "ffn_down"};
    double *w[N_TENSORS];
    for (size_t i = 0; i < N_TENSORS; i++)
        w[i] = tensor(file, (int)layer, parts[i]);
    const double epsilon = number(file, "llama.attention.layer_norm_rms_epsilon");
    const double base = number(file, "llama.rope.freq_base");
    const size_t d = r->head_dim, q_width = r->n_heads * d, kv_width = r->n_kv_heads * d;
    double *const normed = allocate(r->width, sizeof(double)), *const delta = allocate(r->width, sizeof(double));
    double *const q = allocate(r->n_tokens * q_width, sizeof(double)), *const out = allocate(q_width, sizeof(double));
    double *const gate = allocate(r->ffn_width, sizeof(double)), *const up = allocate(r->ffn_width, sizeof(double));
    double *const k = r->keys + layer * r->n_tokens * kv_width, *const v = r->values + layer * r->n_tokens * kv_width;

    for (size_t t = 0; t < r->n_tokens; t++) {
        normalise(w[ATTENTION_NORM], r->width, epsilon, x + t * r->width, normed);
        multiply(w[Q], q_width, r->width, normed, q + t * q_width);
        multiply(w[K], kv_width, r->width, normed, k + t * kv_width);
        multiply(w[V], kv_width, r->width, normed, v + t * kv_width);
        for (size_t h = 0; h < r->n_heads; h++)
            rotate(q + t * q_width + h * d, d, t, base);
        for (size_t h = 0; h < r->n_kv_heads; h++)
            rotate(k + t * kv_width + h * d, d, t, base);
    }
    for (size_t t = 0; t < r->n_tokens; t++) {
        double *const row = x + t * r->width;
        for (size_t h = 0; h < r->n_heads; h++) {
            const size_t kv_head = h / (r->n_heads / r->n_kv_heads);
            attend(q + t * q_width + h * d, k + kv_head * d, v + kv_head * d, t + 1, kv_width, d, out + h * d);
        }
        multiply(w[OUTPUT], r->width, q_width, out, delta);
        for (size_t i = 0; i < r->width; i++)
            row[i] += delta[i];
        normalise(w[FFN_NORM], r->width, epsilon, row, normed);
        multiply(w[GATE], r->ffn_width, r->width, normed, gate);
        multiply(w[UP], r->ffn_width, r->width, normed, up);
        for (size_t i = 0; i < r->ffn_width; i++)
            gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        multiply(w[DOWN], r->width, r->ffn_width, gate, delta);
        for (size_t i = 0; i < r->width; i++)
            row[i] += delta[i];
    }
    for (size_t i = 0; i < N_TENSORS; i++)
        free(w[i]);
    free(normed);
    free(delta);
    free(q);
    free(out);
    free(gate);
    free(up);
}

llama_reference *llama_reference_run(const gguf_file *file, const int32_t *tokens, size_t n_tokens)
{
    llama_reference *const r = allocate(1, sizeof(*r));
    double *const embedding = tensor(file, -1, "token_embd.weight");
    double *const norm = tensor(file, -1, "output_norm.weight");
    r->n_layers = (size_t)number(file, "llama.block_count");
    r->width = (size_t)number(file, "llama.embedding_length");
    r->n_heads = (size_t)number(file, "llama.attention.head_count");
    r->n_kv_heads = (size_t)number(file, "llama.attention.head_count_kv");
    r->head_dim = (size_t)number(file, "llama.attention.key_length");
    r->ffn_width = (size_t)number(file, "llama.feed_forward_length");
    r->n_vocab = gguf_find_tensor(file, "token_embd.weight")->dims[1];
    r->n_tokens = n_tokens;
    const size_t cached = r->n_layers * n_tokens * r->n_kv_heads * r->head_dim;
    r->keys = allocate(cached, sizeof(double));
    r->values = allocate(cached, sizeof(double));
    r->logits = allocate(r->n_vocab, sizeof(double));

    double *const x = allocate(n_tokens * r->width, sizeof(double));
    double *const last = allocate(r->width, sizeof(double));
    for (size_t t = 0; t < n_tokens; t++)
        memcpy(x + t * r->width, embedding + (size_t)tokens[t] * r->width, r->width * sizeof(double));
    for (size_t layer = 0; layer < r->n_layers; layer++)
        run_layer(r, file, layer, x);
    normalise(norm, r->width, number(file, "llama.attention.layer_norm_rms_epsilon"), x + (n_tokens - 1) * r->width,
              last);
    multiply(embedding, r->n_vocab, r->width, last, r->logits); /* the model's output is tied */
    free(x);
    free(last);
    free(embedding);
    free(norm);
    return r;
}

void llama_reference_free(llama_reference *r)
{
    free(r->keys);
    free(r->values);
    free(r->logits);
    free(r);
}
