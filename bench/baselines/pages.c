/* pages.c: see pages.h. A bound is one inner product: of (max, min) with (the positive, the negative part of q). */
#include "pages.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "select.h"
#include "simd/half.h"
#include "table.h"
#include "tasks.h"

enum { PAGES_PER_TASK = 256 };

struct page_index {
    const method_cache *cache;
    uint32_t page, sink, window;
    size_t capacity;  /* pages */
    uint16_t *bounds; /* bf16 [n_layers][n_kv_heads][capacity][2][key_dim]: maxima, minima */
    size_t *built;    /* [n_layers] */
    float *q;         /* [n_query_heads][2][key_dim] */
    float *scores;    /* [n_query_heads][capacity] */
    float *work;      /* [n_kv_heads][capacity] */
    uint8_t *chosen;  /* [n_kv_heads][capacity] */
    /* Of the present call. */
    uint32_t layer;
    size_t n_pages, n_tasks;
    float share;
};

page_index *pages_create(const method_cache *cache, uint32_t page, uint32_t sink, uint32_t window)
{
    page_index *const p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    *p = (page_index){.cache = cache, .page = page, .sink = sink, .window = window, .capacity = cache->capacity / page + 1};
    const size_t dim = cache->format.key_dim, heads = cache->n_kv_heads;
    p->bounds = malloc(cache->n_layers * heads * p->capacity * 2 * dim * sizeof(*p->bounds));
    p->built = calloc(cache->n_layers, sizeof(*p->built));
    p->q = malloc(cache->n_query_heads * 2 * dim * sizeof(*p->q));
    p->scores = malloc(cache->n_query_heads * p->capacity * sizeof(*p->scores));
    p->work = malloc(heads * p->capacity * sizeof(*p->work));
    p->chosen = malloc(heads * p->capacity);
    if (!p->bounds || !p->built || !p->q || !p->scores || !p->work || !p->chosen) {
        pages_free(p);
        return NULL;
    }
    for (uint32_t l = 0; l < cache->n_layers; l++)
        pages_update(p, l);
    return p;
}

void pages_free(page_index *p)
{
    if (!p)
        return;
    free(p->bounds);
    free(p->built);
    free(p->q);
    free(p->scores);
    free(p->work);
    free(p->chosen);
    free(p);
}

uint64_t pages_first(const page_index *p, uint32_t layer)
{
    const uint64_t n = p->cache->n_tokens[layer];
    return n < p->sink ? n : p->sink;
}

size_t pages_count(const page_index *p, uint32_t layer)
{
    const uint64_t n = p->cache->n_tokens[layer], ends = (uint64_t)p->sink + p->window;
    return n > ends ? (size_t)((n - ends) / p->page) : 0;
}

uint64_t pages_end(const page_index *p, uint32_t layer)
{
    return pages_first(p, layer) + pages_count(p, layer) * p->page;
}

static uint16_t *bounds_of(const page_index *p, uint32_t layer, size_t kv_head)
{
    return p->bounds + ((size_t)layer * p->cache->n_kv_heads + kv_head) * p->capacity * 2 * p->cache->format.key_dim;
}

/* bf16 that is not below x. For the minima: not above, with both signs turned. */
static uint16_t round_up(float x)
{
    const uint16_t nearest = dp_bf16_from_f32(x);
    if (!(dp_f32_from_bf16(nearest) < x))
        return nearest;
    return nearest & 0x8000u ? (uint16_t)(nearest - 1) : (uint16_t)(nearest + 1);
}

static void build_page(const page_index *p, uint32_t layer, uint32_t kv_head, size_t number)
{
    const method_cache *const c = p->cache;
    const dp_row_format *const f = &c->format;
    uint16_t *const bounds = bounds_of(p, layer, kv_head) + number * 2 * f->key_dim;
    const char *const keys = method_cache_keys(c, layer, kv_head) + (p->sink + number * p->page) * f->key_bytes;
    float key[DP_MAX_DIM], high[DP_MAX_DIM], low[DP_MAX_DIM];
    for (size_t t = 0; t < p->page; t++) {
        c->kernels->to_f32[f->type](key, keys + t * f->key_bytes, f->key_dim);
        for (size_t j = 0; j < f->key_dim; j++) {
            high[j] = t == 0 || key[j] > high[j] ? key[j] : high[j];
            low[j] = t == 0 || key[j] < low[j] ? key[j] : low[j];
        }
    }
    for (size_t j = 0; j < f->key_dim; j++) {
        bounds[j] = round_up(high[j]);
        bounds[f->key_dim + j] = round_up(-low[j]) ^ 0x8000u;
    }
}

static void build_head(void *argument, size_t kv_head, int thread)
{
    const page_index *const p = argument;
    (void)thread;
    for (size_t i = p->built[p->layer]; i < p->n_pages; i++)
        build_page(p, p->layer, (uint32_t)kv_head, i);
}

void pages_update(page_index *p, uint32_t layer)
{
    p->layer = layer;
    p->n_pages = pages_count(p, layer);
    if (p->n_pages > p->built[layer])
        tasks_run(p->cache->runtime, p->cache->n_kv_heads, build_head, p);
    p->built[layer] = p->n_pages;
}

void pages_restart(page_index *p)
{
    for (uint32_t l = 0; l < p->cache->n_layers; l++)
        p->built[l] = pages_count(p, l);
}

static void score(void *argument, size_t task, int thread)
{
    const page_index *const p = argument;
    const method_cache *const c = p->cache;
    const size_t dim = 2 * c->format.key_dim, kv_head = task / p->n_tasks, first = task % p->n_tasks * PAGES_PER_TASK;
    const size_t left = p->n_pages - first, n = left < PAGES_PER_TASK ? left : PAGES_PER_TASK;
    (void)thread;
    const row_table bounds = {DP_BF16, bounds_of(p, p->layer, kv_head) + first * dim, dim, NULL, n};
    table_logits(c->kernels, &bounds, p->q + kv_head * c->group * dim, c->group, c->scale,
                 p->scores + kv_head * c->group * p->capacity + first, p->capacity);
}

static void choose(void *argument, size_t kv_head, int thread)
{
    const page_index *const p = argument;
    uint8_t *const chosen = p->chosen + kv_head * p->capacity;
    (void)thread;
    memset(chosen, 0, p->n_pages);
    for (size_t r = 0; r < p->cache->group; r++)
        select_largest(p->scores + (kv_head * p->cache->group + r) * p->capacity, p->n_pages,
                       select_count(p->share, p->n_pages), p->work + kv_head * p->capacity, chosen);
}

void pages_choose(page_index *p, uint32_t layer, const float *q, float share)
{
    const method_cache *const c = p->cache;
    const size_t dim = c->format.key_dim;
    p->layer = layer;
    p->n_pages = pages_count(p, layer);
    p->n_tasks = (p->n_pages + PAGES_PER_TASK - 1) / PAGES_PER_TASK;
    p->share = share;
    for (size_t h = 0; h < c->n_query_heads; h++)
        for (size_t j = 0; j < dim; j++) {
            const float x = q[h * dim + j];
            p->q[2 * h * dim + j] = x < 0 ? 0 : x;
            p->q[2 * h * dim + dim + j] = x < 0 ? x : 0;
        }
    tasks_run(c->runtime, p->n_tasks * c->n_kv_heads, score, p);
    tasks_run(c->runtime, c->n_kv_heads, choose, p);
}

const uint8_t *pages_chosen(const page_index *p, uint32_t kv_head)
{
    return p->chosen + kv_head * p->capacity;
}

const float *pages_bounds(const page_index *p, uint32_t kv_head, size_t *stride)
{
    *stride = p->capacity;
    return p->scores + (size_t)kv_head * p->cache->group * p->capacity;
}

uint64_t pages_bytes(const page_index *p, uint32_t layer)
{
    return pages_count(p, layer) * p->cache->n_kv_heads * 2 * p->cache->format.key_dim * sizeof(*p->bounds);
}
