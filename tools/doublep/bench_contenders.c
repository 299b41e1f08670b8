/* bench_contenders.c: see bench_contenders.h. */
#include "bench_contenders.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "progress.h"

enum { CHUNK = 2048 /* tokens appended at once while filling */ };

typedef struct contender {
    const eval_method *method;
    const dp_attention_params *params; /* of the library's methods */
    dp_sequence_config config;
    bool dense;
    size_t owner; /* the first contender with the same sequence */
    dp_sequence *sequence; /* the owner's own, the others' borrowed; NULL for a baseline */
    void *state;           /* of a baseline */
} contender;

struct contenders {
    const bench_settings *settings;
    dp_runtime *runtime;
    uint32_t n_layers;
    contender list[BENCH_METHODS];
    method_cache *cache; /* NULL where there is no baseline, nor a sequence that borrows */
    float *k, *v;        /* [CHUNK] tokens */
    char *error;
    size_t error_size;
};

static bool fail(const contenders *c, const char *reason)
{
    snprintf(c->error, c->error_size, "%s", reason);
    return false;
}

static bool check(const contenders *c, dp_status status)
{
    char reason[256];
    if (status == DP_OK)
        return true;
    dp_last_error(c->runtime, reason, sizeof(reason));
    return fail(c, reason[0] ? reason : dp_strerror(status));
}

/* ---- Creation ------------------------------------------------------------------------------------------------------ */

static void describe(const bench_settings *settings, contender *list)
{
    for (size_t i = 0; i < settings->methods.count; i++) {
        contender *const m = &list[i];
        const dp_sequence_config *config = NULL;
        *m = (contender){.method = &settings->methods.list[i], .owner = i};
        if (!method_library_settings(m->method->type, m->method->settings, &m->params, &config))
            continue;
        m->config = *config;
        m->dense = m->params->method == DP_DENSE;
        for (size_t j = i; j-- > 0;)
            if (list[j].params && list[j].dense == m->dense && memcmp(&list[j].config, &m->config, sizeof(m->config)) == 0)
                m->owner = list[j].owner;
    }
}

size_t contenders_copies(const bench_settings *settings)
{
    contender list[BENCH_METHODS];
    size_t copies = 0, cached = 0;
    describe(settings, list);
    for (size_t i = 0; i < settings->methods.count; i++) {
        const bool borrows = list[i].config.borrowed;
        copies += list[i].owner == i && !borrows;
        cached += !list[i].params || borrows;
    }
    return copies + (cached > 0);
}

static bool create_sequence(contenders *c, contender *m)
{
    const bench_shape *const shape = &c->settings->shape;
    dp_sequence_config *const config = &m->config;
    config->n_layers = c->n_layers;
    config->n_query_heads = shape->n_query_heads;
    config->n_kv_heads = shape->n_kv_heads;
    config->key_dim = config->value_dim = shape->dim;
    if (config->type == DP_TYPE_COUNT)
        config->type = c->settings->type;
    if (config->borrowed && config->type != c->settings->type)
        return fail(c, "borrowed rows are of the cache's type (--kv)");
    if (!check(c, dp_sequence_create(c->runtime, config, &m->sequence)))
        return false;
    for (uint32_t l = 0; m->dense && l < c->n_layers; l++)
        if (!check(c, dp_sequence_set_dense(m->sequence, l, 1)))
            return false;
    for (uint32_t l = 0; c->cache && l < c->n_layers; l++)
        if (!check(c, method_cache_lend(c->cache, m->sequence, config, l)))
            return false;
    return true;
}

static bool create_cache(contenders *c, uint64_t capacity)
{
    const bench_shape *const shape = &c->settings->shape;
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_layers = c->n_layers;
    config.n_query_heads = shape->n_query_heads;
    config.n_kv_heads = shape->n_kv_heads;
    config.key_dim = config.value_dim = shape->dim;
    config.type = c->settings->type;
    c->cache = method_cache_create(c->runtime, &config, (size_t)capacity);
    return c->cache || fail(c, "no memory for the baselines' cache");
}

contenders *contenders_create(const bench_settings *settings, dp_runtime *runtime, uint32_t n_layers, uint64_t capacity,
                              char *error, size_t error_size)
{
    const size_t floats = CHUNK * (size_t)settings->shape.n_kv_heads * settings->shape.dim;
    contenders *const c = calloc(1, sizeof(*c));
    if (!c) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    *c = (contenders){.settings = settings, .runtime = runtime, .n_layers = n_layers, .error = error,
                      .error_size = error_size};
    describe(settings, c->list);
    c->k = malloc(floats * sizeof(*c->k));
    c->v = malloc(floats * sizeof(*c->v));
    bool done = (c->k && c->v) || fail(c, "out of memory");
    for (size_t i = 0; done && i < settings->methods.count; i++) {
        contender *const m = &c->list[i];
        if (!m->params || m->config.borrowed)
            done = c->cache || create_cache(c, capacity);
        if (done && m->params && m->owner == i)
            done = create_sequence(c, m);
        else if (m->params)
            m->sequence = c->list[m->owner].sequence;
    }
    if (done)
        return c;
    contenders_free(c);
    return NULL;
}

void contenders_free(contenders *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->settings->methods.count; i++) {
        if (c->list[i].owner == i)
            dp_sequence_free(c->list[i].sequence);
        if (c->list[i].state)
            c->list[i].method->type->free(c->list[i].state);
    }
    method_cache_free(c->cache);
    free(c->k);
    free(c->v);
    free(c);
}

/* ---- Filling ------------------------------------------------------------------------------------------------------- */

static uint64_t clustered(const dp_sequence *sequence)
{
    dp_memory memory;
    dp_memory_init(&memory);
    return dp_sequence_memory(sequence, &memory) == DP_OK ? memory.clustered_tokens : 0;
}

/* A sequence that borrows finds them in the cache. */
static bool append_tokens(const contenders *c, const contender *m, uint32_t layer, size_t n, const float *k,
                          const float *v)
{
    const bool borrows = m->config.borrowed;
    return check(c, dp_append(m->sequence, layer, n, borrows ? NULL : k, 0, borrows ? NULL : v, 0));
}

/* The time of the index is that of the appends which clustered, less what storing such a chunk takes (the median of the
 * appends that did not), and of the final build. */
static bool fill_sequence(contenders *c, const contender *m, bench_source *source, uint64_t context,
                          bench_figures *figures)
{
    const size_t n_chunks = (size_t)((context + CHUNK - 1) / CHUNK) * c->n_layers;
    double *const store_ms = malloc(n_chunks * sizeof(*store_ms));
    double build_ms = 0;
    size_t n_store = 0, n_cluster = 0, done = 0;
    uint64_t before = 0;
    bool ok = store_ms || fail(c, "out of memory");
    progress bar;
    progress_start(&bar, m->dense ? "filling" : "filling and indexing");
    for (uint32_t l = 0; ok && l < c->n_layers; l++) {
        for (uint64_t first = 0; ok && first < context; first += CHUNK) {
            const size_t n = context - first < CHUNK ? (size_t)(context - first) : CHUNK;
            source->rows(source, l, first, n, c->k, c->v);
            const uint64_t start = clock_ns();
            ok = append_tokens(c, m, l, n, c->k, c->v);
            const double ms = (double)(clock_ns() - start) * 1e-6;
            const uint64_t now = clustered(m->sequence);
            if (now != before) {
                build_ms += ms;
                n_cluster++;
            } else if (n == CHUNK) {
                store_ms[n_store++] = ms;
            }
            before = now;
            done += n;
            progress_show(&bar, done, (size_t)context * c->n_layers);
        }
        const uint64_t start = clock_ns();
        ok = ok && (m->dense || check(c, dp_build_index(m->sequence, l)));
        build_ms += (double)(clock_ns() - start) * 1e-6;
        before = ok ? clustered(m->sequence) : 0;
    }
    progress_end(&bar);
    const double chunk_ms = n_store ? bench_spread_of(store_ms, n_store).median : 0;
    free(store_ms);
    if (ok && !m->dense) {
        figures->build_ms = (build_ms - chunk_ms * (double)n_cluster) / c->n_layers;
        figures->build_tokens_per_s = (double)context * 1e3 / figures->build_ms;
        figures->store_ms = chunk_ms * (double)context / CHUNK;
    }
    return ok;
}

static bool append_to_cache(contenders *c, uint32_t layer, size_t n, const float *k, const float *v)
{
    const size_t width = (size_t)c->settings->shape.n_kv_heads * c->settings->shape.dim;
    return method_cache_append(c->cache, layer, n, k, width, v, width) || fail(c, "the baselines' cache is full");
}

static bool fill_cache(contenders *c, bench_source *source, uint64_t context)
{
    for (uint32_t l = 0; l < c->n_layers; l++)
        for (uint64_t first = 0; first < context; first += CHUNK) {
            const size_t n = context - first < CHUNK ? (size_t)(context - first) : CHUNK;
            source->rows(source, l, first, n, c->k, c->v);
            if (!append_to_cache(c, l, n, c->k, c->v))
                return false;
        }
    return true;
}

bool contenders_fill(contenders *c, bench_source *source, uint64_t context, bench_figures *figures)
{
    if (c->cache && !fill_cache(c, source, context))
        return false;
    for (size_t i = 0; i < c->settings->methods.count; i++)
        if (c->list[i].sequence && c->list[i].owner == i && !fill_sequence(c, &c->list[i], source, context, figures))
            return false;
    for (size_t i = 0; i < c->settings->methods.count; i++) {
        contender *const m = &c->list[i];
        if (m->sequence)
            continue;
        const char *const wrong = m->method->type->check(m->method->settings, c->cache);
        if (wrong)
            return fail(c, wrong);
        fprintf(stderr, "indexing for %s\n", m->method->label);
        m->state = m->method->type->create(c->cache, m->method->settings, c->error, c->error_size);
        if (!m->state)
            return false;
    }
    return true;
}

/* ---- Steps --------------------------------------------------------------------------------------------------------- */

static bool append_one(contenders *c, const contender *m, uint32_t layer, const float *k, const float *v, double *ms)
{
    const uint64_t start = clock_ns();
    const bool done = m->sequence ? append_tokens(c, m, layer, 1, k, v)
                                  : m->method->type->append(m->state, layer, k, v) || fail(c, "a baseline could not append");
    *ms = (double)(clock_ns() - start) * 1e-6;
    return done;
}

bool contenders_append(contenders *c, size_t method, uint32_t layer, const float *k, const float *v, double *ms)
{
    if (method != SIZE_MAX) { /* growth: a baseline's cache grows with it, or that of a sequence which borrows */
        const contender *const m = &c->list[method];
        const bool there = m->sequence && (!m->config.borrowed ||
                                           dp_sequence_tokens(m->sequence, layer) < c->cache->n_tokens[layer]);
        return (there || append_to_cache(c, layer, 1, k, v)) && append_one(c, m, layer, k, v, ms);
    }
    if (c->cache && !append_to_cache(c, layer, 1, k, v))
        return false;
    for (size_t i = 0; i < c->settings->methods.count; i++)
        if (c->list[i].owner == i && !append_one(c, &c->list[i], layer, k, v, ms))
            return false;
    return true;
}

bool contenders_reserve(contenders *c, size_t method, size_t n_tokens, double *ms)
{
    dp_sequence *const sequence = c->list[method].sequence;
    const uint64_t start = clock_ns();
    const bool done = !sequence || check(c, dp_sequence_reserve(sequence, n_tokens));
    *ms = (double)(clock_ns() - start) * 1e-6;
    return done;
}

bool contenders_attend(contenders *c, size_t method, uint32_t layer, const float *q, float *out,
                       dp_attention_stats *stats, double *ms)
{
    const contender *const m = &c->list[method];
    method_report report = {0};
    dp_attention_stats_init(stats);
    const uint64_t start = clock_ns();
    const bool done = m->sequence ? check(c, dp_decode(m->sequence, layer, 1, q, m->params, out, NULL, stats))
                                  : m->method->type->attend(m->state, layer, q, out, &report) ||
                                        fail(c, "a baseline ran out of memory");
    *ms = (double)(clock_ns() - start - report.own_ns) * 1e-6;
    if (!m->sequence) {
        stats->bytes_centroids = report.bytes_index; /* of all kinds */
        stats->bytes_rows = report.bytes_rows;
        stats->bytes = report.bytes_index + report.bytes_rows;
        stats->bytes_dense = method_cache_dense_bytes(c->cache, layer);
    }
    return done;
}

const dp_sequence *contenders_any_sequence(const contenders *c)
{
    for (size_t i = 0; i < c->settings->methods.count; i++)
        if (c->list[i].sequence)
            return c->list[i].sequence;
    return NULL;
}

const dp_sequence *contenders_sequence(const contenders *c, size_t method)
{
    return c->list[method].sequence;
}
