/* The index: every token in one cluster, statistics as defined, outliers alone, growth with decoding, determinism. */
#include <math.h>
#include <string.h>

#include "index/kmeans.h"
#include "kv/sequence.h"
#include "runtime/structs.h"
#include "unit.h"

static float bf16(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

static dp_sequence *filled(dp_runtime *rt, const cache *c, dp_sequence_config *config, size_t chunk)
{
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, config, &s), DP_OK);
    append(s, c, 0, c->n_tokens, chunk);
    ck_assert_int_eq(dp_build_index(s, DP_ALL_LAYERS), DP_OK);
    return s;
}

/* Queries that were shown to the index: their mean, and M = (1 - share) I + share d E[qq'] / tr E[qq'], from the definition. */
typedef struct asked {
    double scale, *mean, *metric;
} asked;

static asked asked_of(const float *q, size_t n, size_t dim, double share)
{
    asked a = {.scale = 1 / sqrt((double)dim),
               .mean = calloc(dim, sizeof(double)),
               .metric = calloc(dim * dim, sizeof(double))};
    double trace = 0;
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < dim; i++) {
            const double x = q[r * dim + i];
            a.mean[i] += x / (double)n;
            trace += x * x;
            for (size_t j = 0; j < dim; j++) a.metric[i * dim + j] += x * q[r * dim + j];
        }
    for (size_t i = 0; i < dim; i++)
        for (size_t j = 0; j < dim; j++)
            a.metric[i * dim + j] = a.metric[i * dim + j] * share * (double)dim / trace + (i == j ? 1 - share : 0);
    return a;
}

/* What the index should keep of a cluster; a: NULL without queries. */
typedef struct expected_cluster {
    double size, spread, centroid[512], value[512];
} expected_cluster;

static expected_cluster expected_of(const dp_segment *seg, const cache *c, size_t kv_head, uint32_t cl, const asked *a)
{
    expected_cluster e = {0};
    const uint32_t n = dp_segment_size(seg, cl);
    double *const weight = calloc(n, sizeof *weight);
    double sum = 0, entropy = 0, difference[512];
    const size_t kd = c->key_dim, vd = c->value_dim;
#define KEY(i, j)                                                                                                      \
    ((double)c->k[((seg->first_token + seg->token[seg->offset[cl] + (i)]) * c->n_kv_heads + kv_head) * kd + (j)])
#define VALUE(i, j)                                                                                                    \
    ((double)c->v[((seg->first_token + seg->token[seg->offset[cl] + (i)]) * c->n_kv_heads + kv_head) * vd + (j)])
    for (uint32_t i = 0; i < n; i++) {
        double logit = 0;
        for (size_t j = 0; a && j < kd; j++) logit += a->scale * a->mean[j] * (KEY(i, j) - KEY(0, j));
        sum += weight[i] = exp(logit);
    }
    for (uint32_t i = 0; i < n; i++) {
        weight[i] /= sum;
        entropy -= weight[i] * log(weight[i]);
        for (size_t j = 0; j < kd; j++) e.centroid[j] += weight[i] * KEY(i, j);
        for (size_t j = 0; j < vd; j++) e.value[j] += weight[i] * VALUE(i, j);
    }
    e.size = exp(entropy);
    for (uint32_t i = 0; i < n; i++) {
        for (size_t j = 0; j < kd; j++) difference[j] = KEY(i, j) - e.centroid[j];
        for (size_t j = 0; j < kd; j++)
            for (size_t l = 0; l < kd; l++)
                e.spread += difference[j] * difference[l] * (a ? a->metric[j * kd + l] : j == l) / (double)(n * kd);
    }
#undef KEY
#undef VALUE
    free(weight);
    return e;
}

/* Sizes, means, dispersion and rows of every cluster, from the rows themselves in double precision. */
static void check_segment(const dp_segment *seg, const dp_row_format *f, const cache *c, size_t kv_head, const asked *a,
                          char *seen)
{
    uint32_t rows = 0;
    for (uint32_t cl = 0; cl < seg->n_clusters; cl++) {
        const uint32_t n = dp_segment_size(seg, cl);
        ck_assert_uint_gt(n, 0);
        ck_assert_uint_eq(seg->offset[cl], rows);
        rows += n;
        const expected_cluster e = expected_of(seg, c, kv_head, cl, a);
        ck_assert_double_eq_tol((double)bf16(seg->size[cl]), e.size, e.size / 250);
        ck_assert_double_eq_tol((double)bf16(seg->limit[cl]), sqrt(2 * log(e.size)),
                                sqrt(2 * log(e.size)) / 100 + 1e-3);
        const int8_t *const panel = seg->panels + cl / DP_PANEL * dp_panel_bytes(f->key_dim);
        const float step = ((const float *)(const void *)(panel + DP_PANEL * f->key_dim))[cl % DP_PANEL];
        const double spread = e.spread + (double)step * (double)step / 12;
        ck_assert_double_eq_tol((double)bf16(seg->spread[cl]), spread, spread / 200 + 1e-6);
        double largest = 0;
        for (size_t j = 0; j < f->key_dim; j++) {
            const double stored = (double)step * panel[j / 4 * 64 + cl % DP_PANEL * 4 + j % 4];
            const double centred = e.centroid[j] - (double)seg->mean_key[j];
            largest = fmax(largest, fabs(centred));
            ck_assert_double_eq_tol(stored, centred, 0.51 * (double)step + 1e-4);
        }
        ck_assert_double_eq_tol((double)step, largest / 127, largest / 1e4 + 1e-6);
        largest = 0;
        for (size_t j = 0; j < f->value_dim; j++) {
            largest = fmax(largest, fabs(e.value[j]));
            ck_assert_double_eq_tol((double)seg->mean_step[cl] * seg->mean_values[cl * f->value_dim + j], e.value[j],
                                    0.51 * (double)seg->mean_step[cl] + 1e-5);
        }
        ck_assert_double_eq_tol((double)seg->mean_step[cl], largest / 127, largest / 1e4 + 1e-6);
        for (uint32_t i = 0; i < n; i++) {
            const size_t t = seg->first_token + seg->token[seg->offset[cl] + i];
            for (size_t j = 0; j < f->key_dim; j++)
                ck_assert_float_eq(((const float *)dp_segment_keys(seg, f, cl))[i * f->key_dim + j],
                                   c->k[(t * c->n_kv_heads + kv_head) * c->key_dim + j]);
            ck_assert_int_eq(seen[t], 0);
            seen[t] = 1;
        }
    }
    ck_assert_uint_eq(rows, seg->n_tokens);
    for (uint32_t cl = seg->n_clusters; cl < seg->n_panels * DP_PANEL; cl++) {
        ck_assert_uint_eq(seg->size[cl], 0);
        ck_assert_uint_eq(seg->spread[cl], 0);
    }
}

/* Shows the first segment's queries to the index in two calls, with a query among them that is not finite, and returns
 * them by KV head: [kv_head][N_ASKED * group] rows. */
enum { N_ASKED = 20 };
static float *ask(dp_sequence *s, rng *r)
{
    const size_t heads = s->config.n_query_heads, group = s->group, dim = s->config.key_dim;
    float *const q = malloc((N_ASKED + 1) * heads * dim * sizeof *q), *const by_head =
                                                                          malloc(N_ASKED * heads * dim * sizeof *q);
    for (size_t i = 0; i < (N_ASKED + 1) * heads * dim; i++)
        q[i] = 0.4f * rng_normal(r) + (i % dim % 7 == 0 ? 1.5f : 0);
    for (size_t h = 0; h < heads; h++) q[(N_ASKED * heads + h) * dim + 3] = NAN;
    for (size_t i = 0; i < N_ASKED; i++)
        for (size_t h = 0; h < heads; h++)
            memcpy(by_head + (h / group * N_ASKED * group + i * group + h % group) * dim, q + (i * heads + h) * dim,
                   dim * sizeof *q);
    ck_assert_int_eq(dp_observe_queries(s, 0, 5, q), DP_OK);
    ck_assert_int_eq(dp_observe_queries(s, 0, N_ASKED + 1 - 5, q + 5 * heads * dim), DP_OK);
    free(q);
    return by_head;
}

START_TEST(statistics_are_as_defined)
{
    rng r = {3};
    cache c = cache_create(&r, 3001, 2, 72, 40, DP_F32);
    dp_runtime *const rt = runtime_with(2, _i & 1 ? DP_ISA_SCALAR : DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 4, DP_F32);
    config.segment_tokens = 1000;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    float *const q = _i & 2 ? ask(s, &r) : NULL;
    append(s, &c, 0, c.n_tokens, 500);
    if (q) free(ask(s, &r)); /* too late: the first segments are there */
    ck_assert_int_eq(dp_build_index(s, DP_ALL_LAYERS), DP_OK);
    char *const seen = malloc(c.n_tokens);
    for (size_t h = 0; h < 2; h++) {
        const dp_head *const head = &s->layers[0].heads[h];
        memset(seen, 0, c.n_tokens);
        ck_assert_uint_eq(head->sink.n, 4);
        ck_assert_uint_eq(head->tail.n, 64);
        asked a = {0};
        if (q) a = asked_of(q + h * N_ASKED * s->group * c.key_dim, N_ASKED * s->group, c.key_dim, 0.5);
        for (uint32_t i = 0; i < head->n_segments; i++)
            check_segment(&head->segments[i], &s->format, &c, h, q ? &a : NULL, seen);
        free(a.mean), free(a.metric);
        for (size_t t = 0; t < c.n_tokens; t++) ck_assert_int_eq(seen[t], t >= 4 && t < c.n_tokens - 64);
    }
    float *const k = malloc(c.n_tokens * 72 * sizeof *k), *const v = malloc(c.n_tokens * 40 * sizeof *v);
    ck_assert_int_eq(dp_sequence_read(s, 0, 1, 0, c.n_tokens, k, v), DP_OK);
    for (size_t t = 0; t < c.n_tokens; t++) {
        ck_assert_mem_eq(k + t * 72, c.k + (t * 2 + 1) * 72, 72 * sizeof *k);
        ck_assert_mem_eq(v + t * 40, c.v + (t * 2 + 1) * 40, 40 * sizeof *v);
    }
    free(k), free(v), free(seen), free(q);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* A token far from everything must stand alone, or share nothing but with its likes. */
START_TEST(outliers_stand_alone)
{
    rng r = {5};
    cache c = cache_create(&r, 1068, 1, 64, 64, DP_F32);
    for (size_t n = 0; n < 5; n++)
        for (size_t j = 0; j < 64; j++) c.k[(100 + 150 * n) * 64 + j] = 9 * rng_normal(&r);
    dp_runtime *const rt = runtime_with(1, DP_ISA_AUTO);
    for (int share = 0; share < 2; share++) {
        dp_sequence_config config = sequence_config(&c, 1, DP_F32);
        config.outlier_share = share ? 0.125f : 0;
        dp_sequence *const s = filled(rt, &c, &config, 1068);
        const dp_segment *const seg = &s->layers[0].heads[0].segments[0];
        int alone = 0, singles = 0;
        for (uint32_t cl = 0; cl < seg->n_clusters; cl++) {
            if (dp_segment_size(seg, cl) != 1) continue;
            singles++;
            ck_assert_float_lt(bf16(seg->spread[cl]), 0.01f); /* of rounding; keys have a variance of 1 to 81 */
            const uint32_t t = seg->token[seg->offset[cl]] + 4u;
            alone += t >= 100 && (t - 100) % 150 == 0 && t < 850;
        }
        if (share) {
            ck_assert_int_eq(alone, 5);
            ck_assert_int_ge(singles, 7); /* 1000 / 16 * 0.125 */
        }
        ck_assert_uint_le(seg->n_clusters, 63);
        dp_sequence_free(s);
    }
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* One token at a time: pairs of heads take turns, the tail stays short, memory stays in bounds, nothing is lost. */
START_TEST(grows_with_decoding)
{
    rng r = {9};
    cache c = cache_create(&r, 6000, 4, 64, 64, DP_BF16);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 4, DP_BF16);
    config.pending_tokens = 512;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 2000, 500);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    int most_at_once = 0;
    for (size_t t = 2000; t < 6000; t++) {
        uint64_t before[4];
        for (int h = 0; h < 4; h++) before[h] = s->layers[0].heads[h].clustered;
        append(s, &c, t, t + 1, 1);
        int at_once = 0;
        for (int h = 0; h < 4; h++) {
            const dp_head *const head = &s->layers[0].heads[h];
            at_once += head->clustered > before[h];
            ck_assert_uint_eq(head->sink.n + head->clustered + head->tail.n, t + 1);
            ck_assert_uint_ge(head->tail.n, 64);
            ck_assert_uint_le(head->tail.n, 64 + 512 + 1);
        }
        if (at_once > most_at_once) most_at_once = at_once;
    }
    ck_assert_int_eq(most_at_once, 2);
    float k[64], v[64];
    for (size_t t = 0; t < 6000; t += 37) {
        ck_assert_int_eq(dp_sequence_read(s, 0, 3, t, 1, k, v), DP_OK);
        ck_assert_mem_eq(k, c.k + (t * 4 + 3) * 64, sizeof k);
        ck_assert_mem_eq(v, c.v + (t * 4 + 3) * 64, sizeof v);
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* However often the index is built, all segments but the last fill a panel, and nothing is lost. */
START_TEST(small_segments_are_extended)
{
    rng r = {11};
    cache c = cache_create(&r, 3000, 2, 64, 64, DP_F32);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_F32);
    config.pending_tokens = 64;
    if (_i) config.segment_tokens = 400; /* not all of them may grow as long as they would */
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    for (size_t t = 0; t < 3000; t += 10) {
        append(s, &c, t, t + 10, 10);
        if (t >= 1500) ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    }
    char *const seen = calloc(c.n_tokens, 1);
    for (uint32_t h = 0; h < 2; h++) {
        const dp_head *const head = &s->layers[0].heads[h];
        memset(seen, 0, c.n_tokens);
        ck_assert_uint_ge(head->n_segments, 2);
        for (uint32_t i = 0; i < head->n_segments; i++) {
            check_segment(&head->segments[i], &s->format, &c, h, NULL, seen);
            if (i + 1 < head->n_segments) ck_assert_uint_ge(head->segments[i].n_tokens, 256);
        }
        for (size_t t = 0; t < c.n_tokens; t++) ck_assert_int_eq(seen[t], t >= 4 && t < c.n_tokens - 64);
    }
    free(seen);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Late segments are longer and have larger clusters, as the header says, however the prompt is cut. */
START_TEST(clusters_grow_with_the_context)
{
    rng r = {13};
    cache c = cache_create(&r, 70000, 1, 8, 8, DP_F16);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 1, DP_F16);
    config.iterations = 1;
    config.cluster_growth = _i ? 0.5f : 0;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, c.n_tokens, _i ? 3000 : 8192);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    const dp_head *const head = &s->layers[0].heads[0];
    for (uint32_t i = 0; i < head->n_segments; i++) {
        const dp_segment *const segment = &head->segments[i];
        const double late = (double)segment->first_token / 32768, factor = _i && late > 1 ? sqrt(late) : 1;
        const double tokens = floor(config.tokens_per_cluster * factor);
        if (i + 1 < head->n_segments) ck_assert_uint_eq(segment->n_tokens, (uint32_t)(config.segment_tokens * factor));
        /* k-means may leave some empty, in small clusters of like keys */
        ck_assert_uint_le(segment->n_clusters, (uint32_t)ceil(segment->n_tokens / tokens));
        ck_assert_double_ge(segment->n_clusters, 0.9 * segment->n_tokens / tokens);
    }
    ck_assert_uint_gt(head->segments[head->n_segments - 1].first_token, _i ? 50000 : 60000);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

START_TEST(memory_stays_in_bounds)
{
    rng r = {13};
    cache c = cache_create(&r, 32768, 2, 64, 64, DP_BF16);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 4, DP_BF16);
    config.n_layers = 4;
    config.iterations = 2;
    config.key_codes = !_i;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    for (uint32_t l = 0; l < 4; l++)
        for (size_t t = 0; t < c.n_tokens; t += 512)
            ck_assert_int_eq(dp_append(s, l, 512, c.k + t * 128, 0, c.v + t * 128, 0), DP_OK);
    ck_assert_int_eq(dp_build_index(s, DP_ALL_LAYERS), DP_OK);
    const dp_memory m = memory_of(s);
    ck_assert_uint_eq(m.plain_bytes, 4ull * 32768 * 2 * 256);
    ck_assert_uint_eq(m.row_bytes, m.plain_bytes);
    ck_assert_uint_ge(m.reserved_bytes, m.row_bytes + m.index_bytes);
    ck_assert_double_le((double)m.reserved_bytes / (double)m.plain_bytes, _i ? 1.12 : 1.3);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Equal keys, zero keys, duplicates, a NaN token: clustering must end, lose nothing, and keep the NaN to itself. */
START_TEST(degenerate_keys)
{
    rng r = {17};
    cache c = cache_create(&r, 700, 1, 64, 64, DP_F32);
    for (size_t i = 0; i < 700 * 64; i++)
        c.k[i] = _i == 0 ? 1.5f : _i == 1 ? 0.0f : _i == 2 ? (float)(i / 64 % 3) : c.k[i];
    if (_i == 3) c.k[333 * 64 + 3] = NAN;
    if (_i == 4) c.k[333 * 64 + 3] = INFINITY;
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 1, DP_F32);
    config.clustering = _i % 2 ? DP_CLUSTERING_SPHERICAL : DP_CLUSTERING_L2;
    dp_sequence *const s = filled(rt, &c, &config, 100);
    float *const k = malloc(700 * 64 * sizeof *k);
    ck_assert_int_eq(dp_sequence_read(s, 0, 0, 0, 700, k, NULL), DP_OK);
    ck_assert_mem_eq(k, c.k, 700 * 64 * sizeof *k);
    const dp_segment *const seg = &s->layers[0].heads[0].segments[0];
    for (uint32_t cl = 0; _i >= 3 && cl < seg->n_clusters; cl++)
        if (!isfinite(bf16(seg->spread[cl]))) ck_assert_uint_eq(dp_segment_size(seg, cl), 1);
    free(k);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

static dp_kmeans clustered(const dp_kernels *kernels, const float *x, size_t n, uint32_t iterations, dp_clustering clustering,
                           dp_scratch *scratch)
{
    dp_kmeans p = {.kernels = kernels, .n = n, .dim = 64, .n_means = 25, .iterations = iterations, .clustering = clustering};
    *scratch = (dp_scratch){0};
    dp_kmeans_carve(&p, scratch);
    *scratch = (dp_scratch){.base = aligned_alloc(64, scratch->used + 64), .bytes = scratch->used + 64};
    dp_kmeans_carve(&p, scratch);
    memcpy(p.x, x, n * p.dim * sizeof *x);
    ck_assert(dp_kmeans_run(&p));
    return p;
}

/* Points and centroids compared as bytes, where the machine does so, against f32: blocks and a remainder. */
START_TEST(bytes_cluster_as_floats_do)
{
    enum { N = 700, DIM = 64 };
    rng r = {23};
    float *const x = malloc(N * DIM * sizeof *x);
    for (size_t i = 0; i < N; i++) {
        const float size = powf(2.0f, 8.0f * rng_uniform(&r)); /* steps of the points' own */
        for (size_t j = 0; j < DIM; j++) x[i * DIM + j] = size * rng_normal(&r);
    }
    dp_runtime *const rt = runtime_with(1, DP_ISA_AUTO);
    dp_kernels floats = rt->kernels;
    floats.nearest_in_bytes = NULL;
    const dp_clustering clustering = _i ? DP_CLUSTERING_SPHERICAL : DP_CLUSTERING_L2;
    for (uint32_t iterations = 1; iterations <= 8; iterations += 7) {
        dp_scratch scratch[2];
        const dp_kmeans a = clustered(&rt->kernels, x, N, iterations, clustering, &scratch[0]);
        const dp_kmeans b = clustered(&floats, x, N, iterations, clustering, &scratch[1]);
        ck_assert(!b.in_bytes);
        size_t differ = 0;
        double sum_a = 0, sum_b = 0;
        for (size_t i = 0; i < N; i++) {
            differ += a.assignment[i] != b.assignment[i];
            sum_a += (double)a.distance[i];
            sum_b += (double)b.distance[i];
        }
        if (iterations == 1) ck_assert_uint_le(differ, N / 50);
        ck_assert_double_le(fabs(sum_a / sum_b - 1), 0.02);
        free(scratch[0].base);
        free(scratch[1].base);
    }
    free(x);
    dp_runtime_free(rt);
}
END_TEST

/* A layer that is dense for good has no index; once it is not, the next append makes one. */
START_TEST(dense_layers_are_not_clustered)
{
    rng r = {19};
    cache c = cache_create(&r, 5000, 1, 64, 64, DP_BF16);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 1, DP_BF16);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    ck_assert_int_eq(dp_sequence_set_dense(s, 0, 1), DP_OK);
    append(s, &c, 0, 3000, 500);
    append(s, &c, 3000, 4999, 1);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    ck_assert_uint_eq(s->layers[0].heads[0].tail.n, 4995);
    ck_assert_uint_le(s->layers[0].heads[0].tail.capacity, 2 * 4995);
    ck_assert_int_eq(dp_sequence_set_dense(s, 0, 0), DP_OK);
    append(s, &c, 4999, 5000, 1);
    ck_assert_uint_eq(s->layers[0].heads[0].tail.n, 65);
    float *const k = malloc(5000 * 64 * sizeof *k);
    ck_assert_int_eq(dp_sequence_read(s, 0, 0, 0, 5000, k, NULL), DP_OK);
    ck_assert_mem_eq(k, c.k, 5000 * 64 * sizeof *k);
    free(k);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("index");
    TCase *const tc = tcase_create("index"), *const slow = slow_cases(suite);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, statistics_are_as_defined, 0, 4);
    tcase_add_test(tc, outliers_stand_alone);
    tcase_add_test(tc, grows_with_decoding);
    tcase_add_loop_test(tc, small_segments_are_extended, 0, 2);
    tcase_add_loop_test(tc, clusters_grow_with_the_context, 0, 2);
    tcase_add_loop_test(slow, memory_stays_in_bounds, 0, 2);
    tcase_add_loop_test(tc, degenerate_keys, 0, 5);
    tcase_add_loop_test(tc, bytes_cluster_as_floats_do, 0, 2);
    tcase_add_test(tc, dense_layers_are_not_clustered);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
