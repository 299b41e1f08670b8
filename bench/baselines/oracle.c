/* oracle.c: the bound for any method that chooses tokens: per query head the smallest set with the share p of the true
 * softmax, sink and window in it. Bytes: the rows of the group's union; that all keys were read to choose does not count. */
#include <stdio.h>
#include <stdlib.h>

#include "method.h"
#include "table.h"
#include "tokens.h"

typedef struct oracle_settings {
    float p;
    uint32_t sink, window;
} oracle_settings;

static const method_field fields[] = {
    METHOD_FIELD(oracle_settings, "p", p, false),
    METHOD_FIELD(oracle_settings, "sink", sink, false),
    METHOD_FIELD(oracle_settings, "window", window, false),
};

typedef struct oracle_state {
    method_cache *cache;
    oracle_settings settings;
    token_choice *choice;
    gather *gather;
    uint32_t layer;
    const float *q;
} oracle_state;

static void defaults(void *settings)
{
    *(oracle_settings *)settings = (oracle_settings){.p = 0.95f, .sink = 4, .window = 64};
}

static const char *check(const void *settings, const method_cache *cache)
{
    const oracle_settings *const s = settings;
    (void)cache;
    return s->p >= 0 && s->p <= 1 ? NULL : "p must be in [0, 1]";
}

static double target(const void *settings)
{
    return (double)((const oracle_settings *)settings)->p;
}

static void state_free(void *state)
{
    oracle_state *const s = state;
    if (!s)
        return;
    tokens_free(s->choice);
    gather_free(s->gather);
    free(s);
}

static void *state_create(method_cache *cache, const void *settings, char *error, size_t error_size)
{
    oracle_state *const s = calloc(1, sizeof(*s));
    if (s) {
        s->cache = cache;
        s->settings = *(const oracle_settings *)settings;
        s->choice = tokens_create(cache);
        s->gather = gather_create(cache);
    }
    if (s && s->choice && s->gather)
        return s;
    state_free(s);
    snprintf(error, error_size, "out of memory");
    return NULL;
}

static bool restart(void *state, const void *settings)
{
    ((oracle_state *)state)->settings = *(const oracle_settings *)settings;
    return true;
}

static bool append(void *state, uint32_t layer, const float *k, const float *v)
{
    (void)state, (void)layer, (void)k, (void)v;
    return true;
}

static void logits(void *user, uint32_t kv_head, const uint32_t *index, size_t n, float *out, size_t stride)
{
    const oracle_state *const s = user;
    const method_cache *const c = s->cache;
    const dp_row_format *const f = &c->format;
    const row_table keys = {f->type, method_cache_keys(c, s->layer, kv_head), f->key_dim, index, n};
    table_logits(c->kernels, &keys, s->q + (size_t)kv_head * c->group * f->key_dim, c->group, c->scale, out, stride);
}

static bool attend(void *state, uint32_t layer, const float *q, float *out, method_report *report)
{
    oracle_state *const s = state;
    const method_cache *const c = s->cache;
    const uint64_t n = c->n_tokens[layer];
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        size_t *count;
        uint32_t *const candidates = tokens_candidates(s->choice, h, &count);
        for (*count = 0; *count < n; ++*count)
            candidates[*count] = (uint32_t)*count;
    }
    s->layer = layer;
    s->q = q;
    gather_begin(s->gather);
    const bool done = tokens_choose(s->choice, layer, s->settings.p, s->settings.sink,
                                    n > s->settings.window ? n - s->settings.window : 0, logits, s, s->gather);
    report->bytes_rows = gather_row_bytes(s->gather);
    return done && gather_run(s->gather, q, out);
}

static void mark(const void *state, uint32_t layer, uint8_t *kept, size_t stride)
{
    (void)layer;
    tokens_mark(((const oracle_state *)state)->choice, kept, stride);
}

const method_type method_oracle = {
    .name = "oracle",
    .settings_bytes = sizeof(oracle_settings),
    .defaults = defaults,
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
    .check = check,
    .target = target,
    .create = state_create,
    .restart = restart,
    .append = append,
    .attend = attend,
    .mark = mark,
    .free = state_free,
};
