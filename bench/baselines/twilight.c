/* twilight.c: Twilight over Quest (arXiv 2502.02770): Quest's pages are the candidates; their keys in 4 bits estimate
 * every token's weight; exact attention over the smallest set with the share p of the estimated softmax. Bytes: all
 * minima and maxima, the 4-bit keys of the candidates, and the rows of the group's union. */
#include <stdio.h>
#include <stdlib.h>

#include "method.h"
#include "pages.h"
#include "quantised.h"
#include "tokens.h"

typedef struct twilight_settings {
    float share, p;
    uint32_t page, sink, window;
} twilight_settings;

static const method_field fields[] = {
    METHOD_FIELD(twilight_settings, "share", share, false),
    METHOD_FIELD(twilight_settings, "p", p, false),
    METHOD_FIELD(twilight_settings, "page", page, true),
    METHOD_FIELD(twilight_settings, "sink", sink, true),
    METHOD_FIELD(twilight_settings, "window", window, true),
};

typedef struct twilight_state {
    method_cache *cache;
    twilight_settings settings;
    page_index *pages;
    quantised_keys *keys;
    token_choice *choice;
    gather *gather;
    uint32_t layer;
    const float *q;
} twilight_state;

static void defaults(void *settings)
{
    *(twilight_settings *)settings =
        (twilight_settings){.share = 0.25f, .p = 0.95f, .page = 16, .sink = 4, .window = 64};
}

static const char *check(const void *settings, const method_cache *cache)
{
    const twilight_settings *const s = settings;
    if (!(s->share >= 0 && s->share <= 1) || !(s->p >= 0 && s->p <= 1))
        return "share and p must be in [0, 1]";
    if (s->page < 1 || s->page > 4096)
        return "page must be in [1, 4096]";
    return 2 * cache->format.key_dim > DP_MAX_DIM ? "keys are longer than 256" : NULL;
}

static double target(const void *settings)
{
    return (double)((const twilight_settings *)settings)->p;
}

static void state_free(void *state)
{
    twilight_state *const s = state;
    if (!s)
        return;
    pages_free(s->pages);
    quantised_free(s->keys);
    tokens_free(s->choice);
    gather_free(s->gather);
    free(s);
}

static void *state_create(method_cache *cache, const void *settings, char *error, size_t error_size)
{
    twilight_state *const s = calloc(1, sizeof(*s));
    if (s) {
        s->cache = cache;
        s->settings = *(const twilight_settings *)settings;
        s->pages = pages_create(cache, s->settings.page, s->settings.sink, s->settings.window);
        s->keys = quantised_create(cache);
        s->choice = tokens_create(cache);
        s->gather = gather_create(cache);
    }
    if (s && s->pages && s->keys && s->choice && s->gather)
        return s;
    state_free(s);
    snprintf(error, error_size, "out of memory");
    return NULL;
}

static bool restart(void *state, const void *settings)
{
    twilight_state *const s = state;
    s->settings = *(const twilight_settings *)settings;
    pages_restart(s->pages);
    quantised_restart(s->keys);
    return true;
}

static bool append(void *state, uint32_t layer, const float *k, const float *v)
{
    twilight_state *const s = state;
    (void)k, (void)v;
    pages_update(s->pages, layer);
    quantised_update(s->keys, layer);
    return true;
}

static void logits(void *user, uint32_t kv_head, const uint32_t *index, size_t n, float *out, size_t stride)
{
    const twilight_state *const s = user;
    quantised_logits(s->keys, s->layer, kv_head, s->q + (size_t)kv_head * s->cache->group * s->cache->format.key_dim,
                     index, n, out, stride);
}

/* The tokens of the chosen pages and those that are always read; returns how many. */
static size_t list_candidates(twilight_state *s, uint32_t kv_head, uint64_t first, uint64_t end)
{
    const uint64_t n = s->cache->n_tokens[s->layer], page = s->settings.page;
    const uint8_t *const chosen = pages_chosen(s->pages, kv_head);
    size_t *count;
    uint32_t *const candidates = tokens_candidates(s->choice, kv_head, &count);
    size_t k = 0;
    for (uint64_t t = 0; t < first; t++)
        candidates[k++] = (uint32_t)t;
    for (uint64_t i = 0; first + i * page < end; i++)
        for (uint64_t t = first + i * page; chosen[i] && t < first + (i + 1) * page; t++)
            candidates[k++] = (uint32_t)t;
    for (uint64_t t = end; t < n; t++)
        candidates[k++] = (uint32_t)t;
    return *count = k;
}

static bool attend(void *state, uint32_t layer, const float *q, float *out, method_report *report)
{
    twilight_state *const s = state;
    const uint64_t first = pages_first(s->pages, layer), end = pages_end(s->pages, layer);
    size_t n_candidates = 0;
    s->layer = layer;
    s->q = q;
    pages_choose(s->pages, layer, q, s->settings.share);
    for (uint32_t h = 0; h < s->cache->n_kv_heads; h++)
        n_candidates += list_candidates(s, h, first, end);
    gather_begin(s->gather);
    const bool done = tokens_choose(s->choice, layer, s->settings.p, first, end, logits, s, s->gather);
    report->bytes_index = pages_bytes(s->pages, layer) + n_candidates * quantised_row_bytes(s->cache);
    report->bytes_rows = gather_row_bytes(s->gather);
    return done && gather_run(s->gather, q, out);
}

static void mark(const void *state, uint32_t layer, uint8_t *kept, size_t stride)
{
    (void)layer;
    tokens_mark(((const twilight_state *)state)->choice, kept, stride);
}

const method_type method_quest_twilight = {
    .name = "quest+twilight",
    .settings_bytes = sizeof(twilight_settings),
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
