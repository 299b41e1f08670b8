/* gather.c: see gather.h. */
#include "gather.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "table.h"
#include "tasks.h"

enum {
    PIECE_ROWS = 256, /* most rows of a piece */
    ITEM_ROWS = 256,  /* an item is closed when it has so many */
    ITEM_MOST = ITEM_ROWS + PIECE_ROWS,
};

typedef struct piece {
    const char *k, *v;
    const uint32_t *index; /* NULL: rows that follow each other */
    const float *logits;   /* NULL: from keys */
    size_t stride;
    uint32_t kv_head, n;
} piece;

typedef struct item {
    uint32_t first, last, kv_head;
} item;

struct gather {
    const method_cache *cache;
    piece **pieces; /* [n_kv_heads] lists */
    size_t *n_pieces, *capacity;
    item *items;
    size_t n_items, items_capacity;
    float *partials; /* [n_items][group][2 + value_dim]: maximum, sum, values */
    size_t partials_capacity;
    float *weights; /* [n_threads][group][ITEM_MOST] */
    uint64_t row_bytes, estimate_bytes;
    const float *q;
    float *out;
};

gather *gather_create(const method_cache *cache)
{
    gather *const g = calloc(1, sizeof(*g));
    if (!g)
        return NULL;
    g->cache = cache;
    g->pieces = calloc(cache->n_kv_heads, sizeof(*g->pieces));
    g->n_pieces = calloc(cache->n_kv_heads, sizeof(*g->n_pieces));
    g->capacity = calloc(cache->n_kv_heads, sizeof(*g->capacity));
    g->weights = malloc((size_t)cache->runtime->n_threads * cache->group * ITEM_MOST * sizeof(*g->weights));
    if (g->pieces && g->n_pieces && g->capacity && g->weights)
        return g;
    gather_free(g);
    return NULL;
}

void gather_free(gather *g)
{
    if (!g)
        return;
    for (uint32_t h = 0; g->pieces && h < g->cache->n_kv_heads; h++)
        free(g->pieces[h]);
    free(g->pieces);
    free(g->n_pieces);
    free(g->capacity);
    free(g->items);
    free(g->partials);
    free(g->weights);
    free(g);
}

void gather_begin(gather *g)
{
    memset(g->n_pieces, 0, g->cache->n_kv_heads * sizeof(*g->n_pieces));
    g->row_bytes = g->estimate_bytes = 0;
}

static bool add_piece(gather *g, piece p)
{
    const uint32_t h = p.kv_head;
    if (g->n_pieces[h] == g->capacity[h]) {
        const size_t capacity = 2 * g->capacity[h] + 64;
        piece *const pieces = realloc(g->pieces[h], capacity * sizeof(*pieces));
        if (!pieces)
            return false;
        g->pieces[h] = pieces;
        g->capacity[h] = capacity;
    }
    g->pieces[h][g->n_pieces[h]++] = p;
    return true;
}

static size_t piece_rows(size_t left)
{
    return left < PIECE_ROWS ? left : PIECE_ROWS;
}

bool gather_run_of_rows(gather *g, uint32_t kv_head, const char *k, const char *v, size_t n)
{
    const dp_row_format *const f = &g->cache->format;
    g->row_bytes += n * (f->key_bytes + f->value_bytes);
    for (size_t i = 0; i < n; i += PIECE_ROWS)
        if (!add_piece(g, (piece){.kv_head = kv_head,
                                  .k = k + i * f->key_bytes,
                                  .v = v + i * f->value_bytes,
                                  .n = (uint32_t)piece_rows(n - i)}))
            return false;
    return true;
}

bool gather_rows(gather *g, uint32_t kv_head, const char *k, const char *v, const uint32_t *index, size_t n)
{
    g->row_bytes += n * (g->cache->format.key_bytes + g->cache->format.value_bytes);
    for (size_t i = 0; i < n; i += PIECE_ROWS)
        if (!add_piece(g, (piece){
                              .kv_head = kv_head, .k = k, .v = v, .index = index + i, .n = (uint32_t)piece_rows(n - i)}))
            return false;
    return true;
}

bool gather_estimates(gather *g, uint32_t kv_head, const uint16_t *values, const uint32_t *index, size_t n,
                      const float *logits, size_t stride)
{
    g->estimate_bytes += n * g->cache->format.value_dim * sizeof(*values);
    for (size_t i = 0; i < n; i += PIECE_ROWS)
        if (!add_piece(g, (piece){.kv_head = kv_head,
                                  .v = (const char *)values,
                                  .index = index + i,
                                  .n = (uint32_t)piece_rows(n - i),
                                  .logits = logits,
                                  .stride = stride}))
            return false;
    return true;
}

uint64_t gather_row_bytes(const gather *g)
{
    return g->row_bytes;
}

uint64_t gather_estimate_bytes(const gather *g)
{
    return g->estimate_bytes;
}

/* Brings a row's running maximum up to the batch's and turns the batch's logits into weights. */
static void weigh(const dp_kernels *kernels, float *state, float *values, size_t dim, float *logits, size_t n)
{
    const float top = kernels->max(logits, n);
    if (top > state[0]) {
        if (state[0] > -INFINITY) {
            const float factor = expf(state[0] - top);
            state[1] *= factor;
            kernels->scale(values, factor, dim);
        }
        state[0] = top;
    }
    state[1] += kernels->exp_sum(logits, n, state[0]);
}

static size_t partial_floats(const method_cache *c)
{
    return c->group * (2 + c->format.value_dim);
}

static void piece_logits(const gather *g, const piece *p, float *weights)
{
    const method_cache *const c = g->cache;
    const dp_row_format *const f = &c->format;
    if (!p->logits) {
        table_logits(c->kernels, &(row_table){f->type, p->k, f->key_dim, p->index, p->n},
                     g->q + (size_t)p->kv_head * c->group * f->key_dim, c->group, c->scale, weights, ITEM_MOST);
        return;
    }
    for (size_t r = 0; r < c->group; r++)
        for (size_t i = 0; i < p->n; i++)
            weights[r * ITEM_MOST + i] = p->logits[r * p->stride + p->index[i]];
}

static void run_item(void *argument, size_t task, int thread)
{
    gather *const g = argument;
    const method_cache *const c = g->cache;
    const size_t dim = c->format.value_dim;
    const item *const it = &g->items[task];
    const piece *const pieces = g->pieces[it->kv_head];
    float *const weights = g->weights + (size_t)thread * c->group * ITEM_MOST;
    float *const partial = g->partials + task * partial_floats(c), *const values = partial + 2 * c->group;
    memset(values, 0, c->group * dim * sizeof(*values));
    size_t n = 0;
    for (size_t i = it->first; i < it->last; n += pieces[i++].n)
        piece_logits(g, &pieces[i], weights + n);
    for (size_t r = 0; r < c->group; r++) {
        partial[2 * r] = -INFINITY;
        partial[2 * r + 1] = 0;
        weigh(c->kernels, partial + 2 * r, values + r * dim, dim, weights + r * ITEM_MOST, n);
    }
    n = 0;
    for (size_t i = it->first; i < it->last; n += pieces[i++].n)
        table_values(c->kernels,
                     &(row_table){pieces[i].logits ? DP_BF16 : c->format.type, pieces[i].v, dim, pieces[i].index,
                                  pieces[i].n},
                     weights + n, ITEM_MOST, c->group, values);
}

/* Cuts the lists into items; false where there is no memory. */
static bool cut_items(gather *g)
{
    const method_cache *const c = g->cache;
    size_t most = 0;
    for (uint32_t h = 0; h < c->n_kv_heads; h++)
        most += g->n_pieces[h];
    if (most > g->items_capacity) {
        item *const items = realloc(g->items, most * sizeof(*items));
        if (!items)
            return false;
        g->items = items;
        g->items_capacity = most;
    }
    g->n_items = 0;
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        size_t rows = 0, first = 0;
        for (size_t i = 0; i < g->n_pieces[h]; i++) {
            rows += g->pieces[h][i].n;
            if (rows < ITEM_ROWS && i + 1 < g->n_pieces[h])
                continue;
            g->items[g->n_items++] = (item){.first = (uint32_t)first, .last = (uint32_t)i + 1, .kv_head = h};
            first = i + 1;
            rows = 0;
        }
    }
    if (g->n_items > g->partials_capacity) {
        float *const partials = realloc(g->partials, g->n_items * partial_floats(c) * sizeof(*partials));
        if (!partials)
            return false;
        g->partials = partials;
        g->partials_capacity = g->n_items;
    }
    return true;
}

/* The items' results of one KV head under one softmax, in the items' order. */
static void merge(void *argument, size_t kv_head, int thread)
{
    gather *const g = argument;
    const method_cache *const c = g->cache;
    const size_t dim = c->format.value_dim, stride = partial_floats(c);
    (void)thread;
    for (size_t r = 0; r < c->group; r++) {
        float *const out = g->out + (kv_head * c->group + r) * dim;
        float top = -INFINITY;
        double sum = 0;
        for (size_t i = 0; i < g->n_items; i++)
            if (g->items[i].kv_head == kv_head)
                top = fmaxf(top, g->partials[i * stride + 2 * r]);
        memset(out, 0, dim * sizeof(*out));
        for (size_t i = 0; i < g->n_items; i++) {
            const float *const partial = g->partials + i * stride;
            if (g->items[i].kv_head != kv_head || !(partial[2 * r] > -INFINITY))
                continue;
            const float factor = expf(partial[2 * r] - top);
            sum += (double)partial[2 * r + 1] * (double)factor;
            c->kernels->axpy(out, partial + 2 * c->group + r * dim, factor, dim);
        }
        c->kernels->scale(out, sum > 0 ? (float)(1 / sum) : 0, dim);
    }
}

bool gather_run(gather *g, const float *q, float *out)
{
    if (!cut_items(g))
        return false;
    g->q = q;
    g->out = out;
    tasks_run(g->cache->runtime, g->n_items, run_item, g);
    tasks_run(g->cache->runtime, g->cache->n_kv_heads, merge, g);
    return true;
}
