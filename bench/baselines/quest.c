/* quest.c: Quest (arXiv 2406.10774): exact attention over a fixed share of the pages, those whose bounds are highest.
 * Bytes: all minima and maxima, and the rows of the pages that any query head of the group chose, with sink, window and
 * the tokens between the last page and the window. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gather.h"
#include "method.h"
#include "pages.h"

typedef struct quest_settings {
    float share;
    uint32_t page, sink, window;
} quest_settings;

static const method_field fields[] = {
    METHOD_FIELD(quest_settings, "share", share, false),
    METHOD_FIELD(quest_settings, "page", page, true),
    METHOD_FIELD(quest_settings, "sink", sink, true),
    METHOD_FIELD(quest_settings, "window", window, true),
};

typedef struct quest_state {
    method_cache *cache;
    quest_settings settings;
    page_index *pages;
    gather *gather;
} quest_state;

static void defaults(void *settings)
{
    *(quest_settings *)settings = (quest_settings){.share = 0.06f, .page = 16, .sink = 4, .window = 64};
}

static const char *check(const void *settings, const method_cache *cache)
{
    const quest_settings *const s = settings;
    if (!(s->share >= 0 && s->share <= 1))
        return "share must be in [0, 1]";
    if (s->page < 1 || s->page > 4096)
        return "page must be in [1, 4096]";
    return 2 * cache->format.key_dim > DP_MAX_DIM ? "keys are longer than 256" : NULL;
}

static double target(const void *settings)
{
    (void)settings;
    return 0;
}

static void state_free(void *state)
{
    quest_state *const s = state;
    if (!s)
        return;
    pages_free(s->pages);
    gather_free(s->gather);
    free(s);
}

static void *state_create(method_cache *cache, const void *settings, char *error, size_t error_size)
{
    quest_state *const s = calloc(1, sizeof(*s));
    if (s) {
        s->cache = cache;
        s->settings = *(const quest_settings *)settings;
        s->pages = pages_create(cache, s->settings.page, s->settings.sink, s->settings.window);
        s->gather = gather_create(cache);
    }
    if (s && s->pages && s->gather)
        return s;
    state_free(s);
    snprintf(error, error_size, "out of memory");
    return NULL;
}

static bool restart(void *state, const void *settings)
{
    quest_state *const s = state;
    s->settings = *(const quest_settings *)settings;
    pages_restart(s->pages);
    return true;
}

static bool append(void *state, uint32_t layer, const float *k, const float *v)
{
    (void)k, (void)v;
    pages_update(((quest_state *)state)->pages, layer);
    return true;
}

static bool attend(void *state, uint32_t layer, const float *q, float *out, method_report *report)
{
    quest_state *const s = state;
    const method_cache *const c = s->cache;
    const dp_row_format *const f = &c->format;
    const uint64_t first = pages_first(s->pages, layer), end = pages_end(s->pages, layer), n = c->n_tokens[layer];
    const size_t n_pages = pages_count(s->pages, layer);
    bool done = true;
    pages_choose(s->pages, layer, q, s->settings.share);
    gather_begin(s->gather);
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        const char *const k = method_cache_keys(c, layer, h), *const v = method_cache_values(c, layer, h);
        const uint8_t *const chosen = pages_chosen(s->pages, h);
        done &= gather_run_of_rows(s->gather, h, k, v, first) &&
                gather_run_of_rows(s->gather, h, k + end * f->key_bytes, v + end * f->value_bytes, n - end);
        for (size_t i = 0, last; i < n_pages; i = last) {
            for (last = i; last < n_pages && chosen[last]; last++)
                ;
            const uint64_t t = first + i * s->settings.page;
            if (last > i)
                done &= gather_run_of_rows(s->gather, h, k + t * f->key_bytes, v + t * f->value_bytes,
                                           (last - i) * s->settings.page);
            else
                last++;
        }
    }
    report->bytes_index = pages_bytes(s->pages, layer);
    report->bytes_rows = gather_row_bytes(s->gather);
    return done && gather_run(s->gather, q, out);
}

static void mark(const void *state, uint32_t layer, uint8_t *kept, size_t stride)
{
    const quest_state *const s = state;
    const uint64_t first = pages_first(s->pages, layer), end = pages_end(s->pages, layer);
    const size_t n_pages = pages_count(s->pages, layer), page = s->settings.page;
    for (uint32_t h = 0; h < s->cache->n_kv_heads; h++) {
        uint8_t *const row = kept + h * stride;
        const uint8_t *const chosen = pages_chosen(s->pages, h);
        memset(row, 1, first);
        memset(row + end, 1, s->cache->n_tokens[layer] - end);
        for (size_t i = 0; i < n_pages; i++)
            memset(row + first + i * page, chosen[i], page);
    }
}

const method_type method_quest = {
    .name = "quest",
    .settings_bytes = sizeof(quest_settings),
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
