/* bench_synthetic.c: a made-up KV cache whose attention looks like a trained model's.
 *
 * A key, before its rotation, is a mean (of the head) + the direction of the token's type (few types are frequent, many
 * are rare) + the direction of the passage's topic + noise, large for one token in OUTLIER_ONE_IN; the variance is
 * mostly in pairs of dimensions that rotate slowly. The rotation then gives the local bias, as it does in models: the
 * means of queries and keys agree best at short distances. The first tokens are sinks. A query's content follows an
 * autoregressive walk over types, topics and noise; retrieval heads look for one outlier for some steps. A head's gain
 * is set on a sample of its keys so that its logits have the standard deviation that its sharpness says. */
#include "bench_source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rope.h"

enum {
    TYPES = 512,
    TOPICS = 64,
    TOPIC_TOKENS = 192,      /* a passage */
    NOISE_VALUES = 1 << 16,  /* normal deviates to draw rows from */
    OUTLIER_ONE_IN = 256,
    SINKS = 4,
    SAMPLE = 1024,           /* keys that a head's gain is set on */
    WALKED = 64,             /* steps of a query's walk before the first that is used: it forgot its start */
    RETRIEVAL_STEPS = 16,    /* a retrieval head looks for the same token for so long */
    LOCAL_TOKENS = 16,       /* that the local bias favours */
    REFERENCE_CONTEXT = 32768, /* where sinks and local tokens have the shares that their head is given */
};
static const float type_scale = 1.0f, topic_scale = 0.35f, noise_scale = 0.4f, outlier_scale = 3.0f, walk = 0.95f;
static const float sink_norm = 20.0f;
static const float local_norm = 3.0f; /* the local part is longer in keys than in queries */
static const double rope_base = 500000;

typedef struct kv_head {
    float *types, *topics;             /* [TYPES][dim], [TOPICS][dim] */
    float *value_types;                /* [TYPES][dim] */
    float *mean, *value_mean;          /* [dim] */
    uint64_t seed;
} kv_head;

typedef struct query_head {
    float *content; /* [dim], walks */
    float gain, local, sink;
    bool retrieval;
    uint64_t next_step, seed;
} query_head;

typedef struct synthetic {
    bench_source source;
    uint64_t context;
    size_t n_pairs;
    double *frequencies; /* [n_pairs] */
    float *spectrum;     /* [dim] standard deviation of a key's content by dimension */
    float *local;        /* [dim] what queries and keys have in common: gives the local bias */
    float *noise;        /* [NOISE_VALUES] */
    kv_head *kv;         /* [n_layers][n_kv_heads] */
    query_head *queries; /* [n_layers][n_query_heads] */
    float *floats;       /* holds the rows of all heads */
} synthetic;

/* ---- Random numbers: functions of their place, so that any token can be made at any time ------------------------- */

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static double uniform(uint64_t x)
{
    return (double)(mix(x) >> 11) * 0x1p-53;
}

static void fill_normal(float *values, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        const double radius = sqrt(-2 * log(1 - uniform(seed + 2 * i)));
        values[i] = (float)(radius * cos(6.283185307179586 * uniform(seed + 2 * i + 1)));
    }
}

/* row[j] += scale * spectrum[j] * normal: the sum of two stretches of the table has 2^32 forms. */
static void add_noise(const synthetic *s, float *row, uint64_t place, float scale)
{
    const size_t dim = s->source.shape.dim;
    const uint64_t r = mix(place);
    const float *const a = s->noise + r % (NOISE_VALUES - dim), *const b = s->noise + (r >> 32) % (NOISE_VALUES - dim);
    for (size_t j = 0; j < dim; j++)
        row[j] += scale * 0.70710678f * s->spectrum[j] * (a[j] + b[j]);
}

/* ---- Keys and values -------------------------------------------------------------------------------------------- */

static size_t type_of(uint64_t token)
{
    const double u = uniform(token * 3 + 1);
    return (size_t)(TYPES * u * u * u);
}

/* A token's key less the head's mean, before the rotation. */
static void add_content(const synthetic *s, const kv_head *h, uint64_t token, float *row)
{
    const size_t dim = s->source.shape.dim;
    const float *const type = h->types + type_of(token) * dim;
    const float *const topic = h->topics + mix(h->seed + token / TOPIC_TOKENS) % TOPICS * dim;
    for (size_t j = 0; j < dim; j++)
        row[j] += type_scale * type[j] + topic_scale * topic[j];
    const bool outlier = mix(h->seed ^ token) % OUTLIER_ONE_IN == 0;
    add_noise(s, row, h->seed + token * 2, noise_scale * (outlier ? outlier_scale : 1));
}

static void make_key(const synthetic *s, const kv_head *h, uint64_t token, const float *rope, float *k)
{
    const size_t dim = s->source.shape.dim;
    memcpy(k, h->mean, dim * sizeof(*k));
    if (token >= SINKS)
        add_content(s, h, token, k);
    rope_apply(rope, s->n_pairs, 1, dim, k, k);
    if (token < SINKS)
        k[dim - 1] += sink_norm * (token == 0 ? 1 : 0.6f); /* a dimension that does not turn */
}

static void make_value(const synthetic *s, const kv_head *h, uint64_t token, float *v)
{
    const size_t dim = s->source.shape.dim;
    const float scale = token < SINKS ? 0.05f : 1;
    const float *const type = h->value_types + type_of(token) * dim;
    const uint64_t r = mix(h->seed + token * 2 + 1);
    const float *const a = s->noise + r % (NOISE_VALUES - dim), *const b = s->noise + (r >> 32) % (NOISE_VALUES - dim);
    for (size_t j = 0; j < dim; j++)
        v[j] = scale * (h->value_mean[j] + 0.7f * type[j] + 0.5f * (a[j] + b[j]));
}

static void rows(bench_source *source, uint32_t layer, uint64_t first, size_t n, float *k, float *v)
{
    const synthetic *const s = (const synthetic *)source;
    const size_t dim = source->shape.dim, n_heads = source->shape.n_kv_heads;
#pragma omp parallel for schedule(static)
    for (size_t t = 0; t < n; t++) {
        float rope[1024];
        rope_table(first + t, s->n_pairs, s->frequencies, rope);
        for (size_t h = 0; h < n_heads; h++) {
            const kv_head *const head = &s->kv[layer * n_heads + h];
            make_key(s, head, first + t, rope, k + (t * n_heads + h) * dim);
            make_value(s, head, first + t, v + (t * n_heads + h) * dim);
        }
    }
}

/* ---- Queries ------------------------------------------------------------------------------------------------------ */

/* One step of the walk; it starts in equilibrium. */
static void advance(const synthetic *s, const kv_head *kv, query_head *h, uint64_t step)
{
    const size_t dim = s->source.shape.dim;
    const float keep = step == 0 ? 0 : walk, fresh = sqrtf(1 - keep * keep);
    const uint64_t r = mix(h->seed + step);
    const float *const type = kv->types + r % TYPES * dim, *const topic = kv->topics + (r >> 20) % TOPICS * dim;
    for (size_t j = 0; j < dim; j++)
        h->content[j] = keep * h->content[j] + fresh * (type[j] + topic[j]);
    add_noise(s, h->content, h->seed + step * 2 + 1, 0.5f * fresh);
}

/* The nearest outlier at or after a token. */
static uint64_t find_outlier(const kv_head *h, uint64_t token)
{
    while (mix(h->seed ^ token) % OUTLIER_ONE_IN != 0)
        token++;
    return token;
}

static void make_query(const synthetic *s, uint32_t layer, size_t head, uint64_t step, uint64_t position, float *q)
{
    const bench_shape *const shape = &s->source.shape;
    const size_t dim = shape->dim, group = shape->n_query_heads / shape->n_kv_heads;
    query_head *const h = &s->queries[layer * shape->n_query_heads + head];
    const kv_head *const kv = &s->kv[layer * shape->n_kv_heads + head / group];
    float rope[1024];
    while (h->next_step <= step + WALKED)
        advance(s, kv, h, h->next_step++);
    for (size_t j = 0; j < dim; j++)
        q[j] = h->gain * h->content[j] + h->local / local_norm * s->local[j];
    if (h->retrieval) {
        float sought[512] = {0};
        const uint64_t start = SINKS + mix(h->seed - step / RETRIEVAL_STEPS) % (s->context - SINKS);
        add_content(s, kv, find_outlier(kv, start), sought);
        for (size_t j = 0; j < dim; j++)
            q[j] += h->gain * sought[j];
    }
    rope_table(position, s->n_pairs, s->frequencies, rope);
    rope_apply(rope, s->n_pairs, 1, dim, q, q);
    q[dim - 1] += h->sink;
}

static void query(bench_source *source, uint32_t layer, uint64_t step, uint64_t position, float *q)
{
    const synthetic *const s = (const synthetic *)source;
    const size_t dim = source->shape.dim;
    for (size_t h = 0; h < source->shape.n_query_heads; h++)
        make_query(s, layer, h, step, position, q + h * dim);
}

/* ---- Creation ----------------------------------------------------------------------------------------------------- */

/* Standard deviation of a query head's logits over sampled keys of the far context, and their log-mean-exp. */
static void measure_logits(const synthetic *s, uint32_t layer, size_t head, float *deviation, float *log_mean_exp)
{
    const bench_shape *const shape = &s->source.shape;
    const size_t dim = shape->dim, group = shape->n_query_heads / shape->n_kv_heads;
    const kv_head *const kv = &s->kv[layer * shape->n_kv_heads + head / group];
    const uint64_t position = s->context;
    float q[512], k[512], rope[1024];
    double sum = 0, squares = 0, exps = 0;
    make_query(s, layer, head, 0, position, q);
    for (uint64_t i = 0; i < SAMPLE; i++) {
        const uint64_t token = SINKS + mix(i) % (s->context - SINKS);
        rope_table(token, s->n_pairs, s->frequencies, rope);
        make_key(s, kv, token, rope, k);
        double logit = 0;
        for (size_t j = 0; j < dim; j++)
            logit += (double)q[j] * (double)k[j];
        logit /= sqrt((double)dim);
        sum += logit;
        squares += logit * logit;
        exps += exp(fmin(logit, 80));
    }
    *deviation = (float)sqrt(squares / SAMPLE - sum / SAMPLE * (sum / SAMPLE));
    *log_mean_exp = (float)log(exps / SAMPLE);
}

static double log_odds(double share)
{
    return log(share / (1 - share));
}

/* Sharp and diffuse heads, strong and weak sinks and local bias, evenly over the heads of a layer. */
static void settle_query_head(synthetic *s, uint32_t layer, size_t head)
{
    query_head *const h = &s->queries[layer * s->source.shape.n_query_heads + head];
    const double a = uniform(h->seed * 5 + 1), b = uniform(h->seed * 5 + 2), c = uniform(h->seed * 5 + 3);
    const float wanted = (float)(0.8 + 2.4 * a);
    const double root = sqrt((double)s->source.shape.dim);
    float deviation = 1, log_mean_exp = 0;
    h->retrieval = head % 4 == 3;
    h->gain = 1;
    for (int i = 0; i < 3; i++) { /* noise that does not scale with the gain needs a few rounds */
        measure_logits(s, layer, head, &deviation, &log_mean_exp);
        h->gain *= wanted / fmaxf(deviation, 0.01f);
    }
    /* The local bias and the sink, each against all that the other tokens have. */
    const double local_share = 0.8 * b, sink_share = 0.6 * c;
    const double log_rest = log(REFERENCE_CONTEXT) + (double)log_mean_exp;
    h->local = (float)fmax(log_rest - log(LOCAL_TOKENS) + log_odds(local_share), 0);
    measure_logits(s, layer, head, &deviation, &log_mean_exp);
    const double log_all = log(REFERENCE_CONTEXT) + (double)log_mean_exp - log(1 - local_share);
    h->sink = (float)((log_all + log_odds(sink_share)) * root / (double)sink_norm);
}

/* Which pairs turn how fast, which carry content, which the local bias. Of an eighth of the pairs the rotation over any
 * context is too small to matter: none. */
static void settle_spectrum(synthetic *s)
{
    const size_t dim = s->source.shape.dim, still = s->n_pairs - s->n_pairs / 8 - 1;
    rope_frequencies(dim, rope_base, 1, NULL, s->frequencies);
    double squares = 0, local = 0;
    for (size_t i = 0; i < s->n_pairs; i++) {
        const double wavelength = 6.283185307179586 / s->frequencies[i];
        const double deviation = wavelength < 8192 ? 0.3 : 1.0;
        const double common = wavelength > 100 && wavelength < 16384;
        for (size_t j = 2 * i; j < 2 * i + 2; j++) {
            s->spectrum[j] = (float)deviation;
            s->local[j] = (float)common;
            squares += deviation * deviation;
            local += common;
        }
        if (i >= still)
            s->frequencies[i] = 0;
    }
    s->spectrum[dim - 1] = 0.1f; /* the sinks' own */
    for (size_t j = 0; j < dim; j++) {
        s->spectrum[j] *= (float)sqrt((double)dim / squares);
        s->local[j] *= (float)sqrt(sqrt((double)dim) / (local > 0 ? local : 1)); /* local x local / sqrt(dim) = 1 */
    }
}

static void settle_kv_head(const synthetic *s, kv_head *h, uint64_t seed, float *floats)
{
    const size_t dim = s->source.shape.dim;
    h->seed = seed;
    h->types = floats;
    h->topics = h->types + TYPES * dim;
    h->value_types = h->topics + TOPICS * dim;
    h->mean = h->value_types + TYPES * dim;
    h->value_mean = h->mean + dim;
    memset(floats, 0, (2 * TYPES + TOPICS + 2) * dim * sizeof(*floats));
    for (size_t i = 0; i < TYPES + TOPICS; i++)
        add_noise(s, h->types + i * dim, mix(seed) + i, 1);
    for (size_t i = 0; i < TYPES; i++)
        add_noise(s, h->value_types + i * dim, mix(seed) - i - 1, 1);
    add_noise(s, h->value_mean, mix(seed) ^ 2, 0.7f);
    /* The mean is several times longer than what tokens add to it. */
    add_noise(s, h->mean, mix(seed) ^ 1, 2);
    for (size_t j = 0; j < dim; j++)
        h->mean[j] = (j + 1 < dim ? h->mean[j] : 0) + local_norm * s->local[j];
}

static void destroy(bench_source *source)
{
    synthetic *const s = (synthetic *)source;
    free(s->frequencies);
    free(s->spectrum);
    free(s->local);
    free(s->noise);
    free(s->kv);
    free(s->queries);
    free(s->floats);
    free(s);
}

bench_source *bench_synthetic_create(const bench_shape *shape, uint32_t n_layers, uint64_t context)
{
    const size_t dim = shape->dim, n_kv = (size_t)n_layers * shape->n_kv_heads;
    const size_t n_query = (size_t)n_layers * shape->n_query_heads, kv_floats = (2 * TYPES + TOPICS + 2) * dim;
    synthetic *const s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    s->source = (bench_source){.synthetic = true, .shape = *shape, .n_layers = n_layers, .rows = rows, .query = query,
                               .destroy = destroy};
    strcpy(s->source.label, "synthetic (clustered keys, sinks, local bias, outliers; no model's data)");
    s->context = context;
    s->n_pairs = dim / 2;
    s->frequencies = calloc(s->n_pairs, sizeof(*s->frequencies));
    s->spectrum = calloc(dim, sizeof(*s->spectrum));
    s->local = calloc(dim, sizeof(*s->local));
    s->noise = calloc(NOISE_VALUES, sizeof(*s->noise));
    s->kv = calloc(n_kv, sizeof(*s->kv));
    s->queries = calloc(n_query, sizeof(*s->queries));
    s->floats = calloc(n_kv * kv_floats + n_query * dim, sizeof(*s->floats));
    if (!s->frequencies || !s->spectrum || !s->local || !s->noise || !s->kv || !s->queries || !s->floats) {
        destroy(&s->source);
        return NULL;
    }
    fill_normal(s->noise, NOISE_VALUES, 1);
    settle_spectrum(s);
    for (size_t i = 0; i < n_kv; i++)
        settle_kv_head(s, &s->kv[i], mix(i + 1), s->floats + i * kv_floats);
    for (size_t i = 0; i < n_query; i++) {
        s->queries[i].content = s->floats + n_kv * kv_floats + i * dim;
        s->queries[i].seed = mix(~(uint64_t)i);
    }
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < n_query; i++)
        settle_query_head(s, (uint32_t)(i / shape->n_query_heads), i % shape->n_query_heads);
    return &s->source;
}
