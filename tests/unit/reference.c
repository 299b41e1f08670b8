/* The double-precision reference. */
#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

float rng_uniform(rng *r)
{
    r->state = r->state * 6364136223846793005u + 1442695040888963407u;
    return (float)(r->state >> 40) / 16777216.0f;
}

float rng_normal(rng *r)
{
    const float u = rng_uniform(r) + 1e-7f, v = rng_uniform(r);
    return sqrtf(-2 * logf(u)) * cosf(6.2831853f * v);
}

/* A row of int8: whole multiples of its step. */
static void round_to_steps(float *x, size_t n)
{
    float largest = 0;
    for (size_t j = 0; j < n; j++) largest = fmaxf(largest, fabsf(x[j]));
    for (size_t j = 0; j < n && largest > 0; j++) x[j] = largest / 127 * rintf(x[j] / (largest / 127));
}

static float round_to(float x, dp_type type)
{
    if (type == DP_F32 || type == DP_INT8 || x == 0) return x;
    if (type == DP_F16) { /* 11 significant bits, exponents from -14; the test data stay far below overflow */
        const int exponent = ilogbf(x) < -14 ? -14 : ilogbf(x);
        return (float)ldexp(nearbyint(ldexp((double)x, 10 - exponent)), exponent - 10);
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

cache cache_create(rng *r, size_t n_tokens, size_t n_kv_heads, size_t key_dim, size_t value_dim, dp_type type)
{
    enum { TOPICS = 40 };
    cache c = {n_tokens, n_kv_heads, key_dim, value_dim, NULL, NULL};
    c.k = malloc(n_tokens * n_kv_heads * key_dim * sizeof(float));
    c.v = malloc(n_tokens * n_kv_heads * value_dim * sizeof(float));
    float *const topic = malloc((TOPICS + 1) * key_dim * sizeof(float));
    for (size_t i = 0; i < (TOPICS + 1) * key_dim; i++) topic[i] = rng_normal(r);
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t h = 0; h < n_kv_heads; h++) {
            const size_t which = (size_t)(rng_uniform(r) * TOPICS);
            const float noise = rng_uniform(r) < 0.01f ? 1.5f : 0.4f;
            float *const k = c.k + (t * n_kv_heads + h) * key_dim, *const v = c.v + (t * n_kv_heads + h) * value_dim;
            for (size_t j = 0; j < key_dim; j++)
                k[j] = round_to(topic[TOPICS * key_dim + j] + topic[which * key_dim + j] + noise * rng_normal(r), type);
            for (size_t j = 0; j < value_dim; j++) v[j] = round_to(rng_normal(r), type);
            if (type != DP_INT8) continue;
            round_to_steps(k, key_dim);
            round_to_steps(v, value_dim);
        }
    free(topic);
    return c;
}

void cache_free(cache *c)
{
    free(c->k);
    free(c->v);
}

void make_queries(rng *r, const cache *c, size_t n_queries, size_t n_query_heads, float *q)
{
    const size_t group = n_query_heads / c->n_kv_heads;
    for (size_t i = 0; i < n_queries; i++)
        for (size_t h = 0; h < n_query_heads; h++) {
            const size_t token = (size_t)(rng_uniform(r) * (float)c->n_tokens);
            for (size_t j = 0; j < c->key_dim; j++)
                q[(i * n_query_heads + h) * c->key_dim + j] =
                    0.8f * c->k[(token * c->n_kv_heads + h / group) * c->key_dim + j] + 0.5f * rng_normal(r);
        }
}

void reference_attention(const cache *c, size_t n_query_heads, float scale, size_t n_queries, const float *q,
                         float *out, float *lse)
{
    reference_capped_attention(c, n_query_heads, scale, 0, n_queries, q, out, lse);
}

void reference_capped_attention(const cache *c, size_t n_query_heads, float scale, float softcap, size_t n_queries,
                                const float *q, float *out, float *lse)
{
    const size_t group = n_query_heads / c->n_kv_heads;
    double *const logits = malloc(c->n_tokens * sizeof *logits), *const acc = malloc(c->value_dim * sizeof *acc);
    for (size_t i = 0; i < n_queries; i++)
        for (size_t h = 0; h < n_query_heads; h++) {
            const size_t n = c->n_tokens - n_queries + i + 1, row = i * n_query_heads + h;
            double top = -INFINITY, sum = 0;
            for (size_t t = 0; t < n; t++) {
                double dot = 0;
                for (size_t j = 0; j < c->key_dim; j++)
                    dot += (double)q[row * c->key_dim + j] * c->k[(t * c->n_kv_heads + h / group) * c->key_dim + j];
                logits[t] = softcap > 0 ? softcap * tanh(dot * scale / softcap) : dot * scale;
                if (logits[t] > top) top = logits[t];
            }
            memset(acc, 0, c->value_dim * sizeof *acc);
            for (size_t t = 0; t < n; t++) {
                const double w = exp(logits[t] - top);
                sum += w;
                for (size_t j = 0; j < c->value_dim; j++)
                    acc[j] += w * c->v[(t * c->n_kv_heads + h / group) * c->value_dim + j];
            }
            for (size_t j = 0; j < c->value_dim; j++) out[row * c->value_dim + j] = (float)(acc[j] / sum);
            if (lse) lse[row] = (float)(log(sum) + top);
        }
    free(logits);
    free(acc);
}

double relative_error(const float *a, const float *b, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - b[i];
        difference += d * d;
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference / (norm > 0 ? norm : 1));
}
