/* tokens.c: see tokens.h. */
#include "tokens.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/runtime.h"
#include "select.h"
#include "tasks.h"

enum { TOKENS_PER_TASK = 512 };

struct token_choice {
    const method_cache *cache;
    uint32_t *candidates; /* [n_kv_heads][capacity]; after the choice, what was chosen */
    size_t *n;            /* [n_kv_heads] */
    float *weights;       /* [n_query_heads][capacity] */
    uint8_t *wanted;      /* [n_kv_heads][capacity] */
    /* Of the present call. */
    float p;
    uint64_t first, end;
    size_t n_tasks;
    tokens_logits_fn logits;
    void *user;
};

token_choice *tokens_create(const method_cache *cache)
{
    token_choice *const t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->cache = cache;
    t->candidates = malloc(cache->n_kv_heads * cache->capacity * sizeof(*t->candidates));
    t->n = calloc(cache->n_kv_heads, sizeof(*t->n));
    t->weights = malloc(cache->n_query_heads * cache->capacity * sizeof(*t->weights));
    t->wanted = malloc(cache->n_kv_heads * cache->capacity);
    if (t->candidates && t->n && t->weights && t->wanted)
        return t;
    tokens_free(t);
    return NULL;
}

void tokens_free(token_choice *t)
{
    if (!t)
        return;
    free(t->candidates);
    free(t->n);
    free(t->weights);
    free(t->wanted);
    free(t);
}

uint32_t *tokens_candidates(token_choice *t, uint32_t kv_head, size_t **n)
{
    *n = &t->n[kv_head];
    return t->candidates + kv_head * t->cache->capacity;
}

static void score(void *argument, size_t task, int thread)
{
    token_choice *const t = argument;
    const size_t h = task / t->n_tasks, first = task % t->n_tasks * TOKENS_PER_TASK;
    (void)thread;
    if (first >= t->n[h])
        return;
    const size_t left = t->n[h] - first, n = left < TOKENS_PER_TASK ? left : TOKENS_PER_TASK;
    t->logits(t->user, (uint32_t)h, t->candidates + h * t->cache->capacity + first, n,
              t->weights + h * t->cache->group * t->cache->capacity + first, t->cache->capacity);
}

/* Leaves in the KV head's list what any of its query heads wants. */
static void choose(void *argument, size_t kv_head, int thread)
{
    token_choice *const t = argument;
    const method_cache *const c = t->cache;
    uint32_t *const candidates = t->candidates + kv_head * c->capacity;
    uint8_t *const wanted = t->wanted + kv_head * c->capacity;
    const size_t n = t->n[kv_head];
    size_t before = 0, last = n; /* candidates [before, last) are the ones to choose from */
    (void)thread;
    while (before < n && candidates[before] < t->first)
        before++;
    while (last > before && candidates[last - 1] >= t->end)
        last--;
    for (size_t i = 0; i < n; i++)
        wanted[i] = i < before || i >= last;
    for (size_t r = 0; r < c->group; r++) {
        float *const w = t->weights + (kv_head * c->group + r) * c->capacity;
        const double total = (double)c->kernels->exp_sum(w, n, c->kernels->max(w, n));
        double exact = 0;
        for (size_t i = 0; i < n; i++)
            exact += i < before || i >= last ? (double)w[i] : 0;
        const float limit =
            t->p >= 1 ? 0 : select_threshold(c->kernels, w + before, last - before, (double)t->p * total - exact);
        for (size_t i = before; i < last; i++)
            wanted[i] |= !(w[i] < limit);
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (wanted[i])
            candidates[kept++] = candidates[i];
    t->n[kv_head] = kept;
}

bool tokens_choose(token_choice *t, uint32_t layer, float p, uint64_t first, uint64_t end, tokens_logits_fn logits,
                   void *user, gather *g)
{
    const method_cache *const c = t->cache;
    t->p = p;
    t->first = first;
    t->end = end;
    t->logits = logits;
    t->user = user;
    t->n_tasks = 0;
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        const size_t tasks = (t->n[h] + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK;
        t->n_tasks = tasks > t->n_tasks ? tasks : t->n_tasks;
    }
    tasks_run(c->runtime, t->n_tasks * c->n_kv_heads, score, t);
    tasks_run(c->runtime, c->n_kv_heads, choose, t);
    bool done = true;
    for (uint32_t h = 0; h < c->n_kv_heads; h++)
        done &= gather_rows(g, h, method_cache_keys(c, layer, h), method_cache_values(c, layer, h),
                            t->candidates + h * c->capacity, t->n[h]);
    return done;
}

void tokens_mark(const token_choice *t, uint8_t *kept, size_t stride)
{
    for (uint32_t h = 0; h < t->cache->n_kv_heads; h++)
        for (size_t i = 0; i < t->n[h]; i++)
            kept[h * stride + t->candidates[h * t->cache->capacity + i]] = 1;
}
