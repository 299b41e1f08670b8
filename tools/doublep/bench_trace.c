/* bench_trace.c: recorded keys, values and queries, tiled where more is asked for than was recorded.
 *
 * Each head of the benchmark takes its rows and queries from one head of one recorded layer; when all were taken once,
 * the next heads take them from another document. Longer contexts are several documents one after the other, the one
 * that the queries belong to last; its prompt's decoded tokens follow, over and over. Where the documents are longer
 * than the context, what is behind the first document's sinks is left out. */
#include "bench_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"

enum { SINKS = 4 };

typedef struct recorded_source {
    bench_source source;
    trace **traces;
    size_t n_traces;
    uint64_t context, n_prompt; /* tokens of all prompts */
} recorded_source;

/* Where a head of the benchmark comes from. */
typedef struct origin {
    size_t document; /* its own: the last */
    uint32_t layer, kv_head;
} origin;

static origin find_origin(const recorded_source *s, uint32_t layer, uint32_t kv_head)
{
    const trace_header *const h = &s->traces[0]->header;
    const size_t number = (size_t)layer * s->source.shape.n_kv_heads + kv_head;
    const size_t recorded = (size_t)h->n_layers * h->n_kv_heads, place = number % recorded;
    return (origin){number / recorded % s->n_traces, (uint32_t)(place / h->n_kv_heads), (uint32_t)(place % h->n_kv_heads)};
}

/* Document and token of a token of the benchmark's cache. */
static uint64_t find_token(const recorded_source *s, const origin *o, uint64_t token, size_t *document)
{
    const trace_layer *const own = &s->traces[o->document]->layers[o->layer];
    if (token >= s->context) {
        *document = o->document;
        return own->n_prompt + (token - s->context) % own->n_queries;
    }
    if (token >= SINKS)
        token += s->n_prompt - s->context;
    for (size_t i = 1;; i++) {
        *document = (o->document + i) % s->n_traces;
        const uint64_t n = s->traces[*document]->layers[o->layer].n_prompt;
        if (token < n || i == s->n_traces)
            return token;
        token -= n;
    }
}

static void widen(const uint16_t *from, size_t n, float *to)
{
    for (size_t j = 0; j < n; j++) {
        const uint32_t bits = (uint32_t)from[j] << 16;
        memcpy(to + j, &bits, sizeof(bits));
    }
}

static void rows(bench_source *source, uint32_t layer, uint64_t first, size_t n, float *k, float *v)
{
    const recorded_source *const s = (const recorded_source *)source;
    const size_t dim = source->shape.dim, n_heads = source->shape.n_kv_heads;
    for (uint32_t h = 0; h < n_heads; h++) {
        const origin o = find_origin(s, layer, h);
        for (size_t t = 0; t < n; t++) {
            const uint16_t *key = NULL, *value = NULL;
            size_t document;
            const uint64_t token = find_token(s, &o, first + t, &document);
            if (!trace_token(s->traces[document], o.layer, token, &key, &value))
                continue; /* cannot be: the lengths were checked */
            widen(key + o.kv_head * dim, dim, k + (t * n_heads + h) * dim);
            widen(value + o.kv_head * dim, dim, v + (t * n_heads + h) * dim);
        }
    }
}

static void query(bench_source *source, uint32_t layer, uint64_t step, uint64_t position, float *q)
{
    (void)position;
    const recorded_source *const s = (const recorded_source *)source;
    const bench_shape *const shape = &source->shape;
    const size_t group = shape->n_query_heads / shape->n_kv_heads, width = group * shape->dim;
    for (uint32_t h = 0; h < shape->n_kv_heads; h++) {
        const origin o = find_origin(s, layer, h);
        const trace_layer *const own = &s->traces[o.document]->layers[o.layer];
        memcpy(q + h * width, own->queries[step % own->n_queries] + o.kv_head * width, width * sizeof(*q));
    }
}

static void destroy(bench_source *source)
{
    recorded_source *const s = (recorded_source *)source;
    for (size_t i = 0; i < s->n_traces; i++)
        trace_close(s->traces[i]);
    free(s->traces);
    free(s);
}

static bool same_model(const trace *a, const trace *b)
{
    return a->header.n_layers == b->header.n_layers && a->header.n_query_heads == b->header.n_query_heads &&
           a->header.n_kv_heads == b->header.n_kv_heads && a->header.dim == b->header.dim;
}

static bool settle(recorded_source *s, char *error, size_t error_size)
{
    const bench_shape *const shape = &s->source.shape;
    const trace_header *const h = &s->traces[0]->header;
    uint64_t n_steps = UINT64_MAX;
    for (size_t i = 0; i < s->n_traces; i++) {
        if (!same_model(s->traces[i], s->traces[0])) {
            snprintf(error, error_size, "recording %zu has another shape or other layers than the first", i + 1);
            return false;
        }
        s->n_prompt += s->traces[i]->layers[0].n_prompt;
        for (uint32_t l = 0; l < h->n_layers; l++) {
            if (s->traces[i]->layers[l].n_prompt != s->traces[i]->layers[0].n_prompt) {
                snprintf(error, error_size, "recording %zu has layers of different length", i + 1);
                return false;
            }
            n_steps = s->traces[i]->layers[l].n_queries < n_steps ? s->traces[i]->layers[l].n_queries : n_steps;
        }
    }
    if (h->dim != shape->dim || h->n_query_heads / h->n_kv_heads != shape->n_query_heads / shape->n_kv_heads) {
        snprintf(error, error_size, "the recordings have %u query heads for %u KV heads and d %u: --shape must have the same d "
                 "and as many query heads for a KV head", h->n_query_heads, h->n_kv_heads, h->dim);
        return false;
    }
    if (s->n_prompt < s->context) {
        snprintf(error, error_size, "the recordings have %llu tokens, fewer than the context of %llu: give more of them",
                 (unsigned long long)s->n_prompt, (unsigned long long)s->context);
        return false;
    }
    const size_t heads = (size_t)shape->n_kv_heads * s->source.n_layers;
    const size_t recorded = (size_t)h->n_layers * h->n_kv_heads, distinct = recorded * s->n_traces;
    const uint64_t first = s->traces[0]->layers[0].n_prompt;
    snprintf(s->source.label, sizeof(s->source.label),
             "recorded: %zu document%s, %llu steps over and over; %zu KV heads from %zu recorded ones%s%s%s", s->n_traces,
             s->n_traces == 1 ? "" : "s", (unsigned long long)n_steps, heads, heads < distinct ? heads : distinct,
             s->n_traces > 1 && s->context > first ? "; contexts tiled from several documents (positions restart)" : "",
             s->n_prompt > s->context ? "; oldest tokens left out" : "", heads > distinct ? "; heads repeat" : "");
    return true;
}

bench_source *bench_trace_create(const char *const *paths, size_t n_paths, const bench_shape *shape, uint32_t n_layers,
                                 uint64_t context, char *error, size_t error_size)
{
    recorded_source *const s = calloc(1, sizeof(*s));
    trace **const traces = calloc(n_paths, sizeof(*traces));
    if (!s || !traces) {
        snprintf(error, error_size, "out of memory");
        free(s);
        free(traces);
        return NULL;
    }
    s->source = (bench_source){.shape = *shape, .n_layers = n_layers, .rows = rows, .query = query, .destroy = destroy};
    s->traces = traces;
    s->context = context;
    bool done = true;
    for (size_t i = 0; done && i < n_paths; i++) {
        traces[i] = trace_open(paths[i], error, error_size);
        done = traces[i] != NULL;
        s->n_traces += done;
    }
    if (done && settle(s, error, error_size))
        return &s->source;
    destroy(&s->source);
    return NULL;
}

bool bench_trace_shape(const char *path, bench_shape *shape, uint64_t *n_tokens, char *error, size_t error_size)
{
    trace *const t = trace_open(path, error, error_size);
    if (!t)
        return false;
    *shape = (bench_shape){.n_query_heads = t->header.n_query_heads, .n_kv_heads = t->header.n_kv_heads,
                           .dim = t->header.dim};
    snprintf(shape->name, sizeof(shape->name), "%ux%ux%u", shape->n_query_heads, shape->n_kv_heads, shape->dim);
    *n_tokens = t->layers[0].n_prompt;
    trace_close(t);
    return true;
}
