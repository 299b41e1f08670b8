/* What the tests of the compared methods share: a cache with a query, methods made from settings, true logits. */
#ifndef TESTS_UNIT_BASELINES_H
#define TESTS_UNIT_BASELINES_H

#include <math.h>
#include <string.h>

#include "method.h"
#include "unit.h"

enum { KEY_DIM = 32, VALUE_DIM = 24, KV_HEADS = 2, PROMPT = 700, ALL = 760, SINK = 4, WINDOW = 64 };

typedef struct fixture {
    dp_runtime *runtime;
    cache rows; /* as f32, in the order of dp_append */
    method_cache *cache;
    size_t n_heads;
    float q[16 * KEY_DIM], want[16 * VALUE_DIM], out[16 * VALUE_DIM];
} fixture;

/* A cache of one layer that holds the first n tokens. */
static inline fixture fixture_create(dp_type type, size_t group, size_t n)
{
    rng r = {7 + (uint64_t)type};
    fixture f = {.runtime = runtime_with(2, DP_ISA_AUTO), .n_heads = group * KV_HEADS};
    f.rows = cache_create(&r, ALL, KV_HEADS, KEY_DIM, VALUE_DIM, type);
    dp_sequence_config config = sequence_config(&f.rows, f.n_heads, type);
    f.cache = method_cache_create(f.runtime, &config, ALL);
    ck_assert_ptr_nonnull(f.cache);
    ck_assert(method_cache_append(f.cache, 0, n, f.rows.k, KV_HEADS * KEY_DIM, f.rows.v, KV_HEADS * VALUE_DIM));
    make_queries(&r, &f.rows, 1, f.n_heads, f.q);
    return f;
}

static inline void fixture_free(fixture *f)
{
    method_cache_free(f->cache);
    cache_free(&f->rows);
    dp_runtime_free(f->runtime);
}

/* Dense attention over the first n tokens. */
static inline void dense(fixture *f, size_t n)
{
    cache some = f->rows;
    some.n_tokens = n;
    reference_attention(&some, f->n_heads, 1 / sqrtf(KEY_DIM), 1, f->q, f->want, NULL);
}

/* A method with settings in the form "a=1:b=2". */
static inline void *settings_of(const method_type *type, const char *text)
{
    char error[400];
    void *const settings = malloc(type->settings_bytes);
    type->defaults(settings);
    for (const char *at = text; *at; at += *at == ':') {
        const size_t n = strcspn(at, ":");
        if (!method_set(type, settings, at, n, error, sizeof(error)))
            ck_abort_msg("%s", error);
        at += n;
    }
    return settings;
}

static inline void *create(const method_type *type, fixture *f, const char *text)
{
    char error[400] = "";
    void *const settings = settings_of(type, text), *const state = type->create(f->cache, settings, error, sizeof(error));
    ck_assert_ptr_null(type->check(settings, f->cache));
    ck_assert_msg(state != NULL, "%s: %s", type->name, error);
    free(settings);
    return state;
}

/* Gives a method the tokens [first, last). */
static inline void grow(const method_type *type, void *state, fixture *f, size_t first, size_t last)
{
    for (size_t t = first; t < last; t++) {
        const float *const k = f->rows.k + t * KV_HEADS * KEY_DIM, *const v = f->rows.v + t * KV_HEADS * VALUE_DIM;
        ck_assert(method_cache_append(f->cache, 0, 1, k, KV_HEADS * KEY_DIM, v, KV_HEADS * VALUE_DIM));
        ck_assert(type->append(state, 0, k, v));
    }
}

static inline method_report attend(const method_type *type, void *state, fixture *f)
{
    method_report report = {0};
    memset(f->out, 0xff, sizeof(f->out));
    ck_assert(type->attend(state, 0, f->q, f->out, &report));
    return report;
}

static inline void mark(const method_type *type, const void *state, uint8_t *kept)
{
    memset(kept, 0, KV_HEADS * ALL);
    type->mark(state, 0, kept, ALL);
}

/* True logits of a query head over the first n tokens. */
static inline void true_logits(const fixture *f, size_t head, size_t n, double *logits)
{
    const size_t kv_head = head / (f->n_heads / KV_HEADS);
    for (size_t t = 0; t < n; t++) {
        logits[t] = 0;
        for (size_t j = 0; j < KEY_DIM; j++)
            logits[t] += (double)f->q[head * KEY_DIM + j] * (double)f->rows.k[(t * KV_HEADS + kv_head) * KEY_DIM + j];
        logits[t] /= sqrt(KEY_DIM);
    }
}

static inline void softmax(double *x, size_t n)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        top = fmax(top, x[i]);
    for (size_t i = 0; i < n; i++)
        sum += x[i] = exp(x[i] - top);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

#endif
