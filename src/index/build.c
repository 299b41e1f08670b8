/* From rows in token order to a segment. */
#include "index/build.h"

#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

#include "index/kmeans.h"
#include "simd/quantise.h"

enum { SLOPE_BLOCK = 256 }; /* tokens per product of the slope: axpy by axpy it takes five times as long */

/* Work of one build. */
typedef struct build {
    dp_kmeans kmeans;
    size_t n_outliers;
    struct far_token {
        float distance;
        uint32_t token;
    } * far_tokens;            /* [n] */
    uint32_t *cluster;         /* [n] token -> cluster of the segment */
    uint32_t *fill;            /* [n_clusters] rows already placed */
    const char *keys, *values; /* rows in token order */
    float *slope;              /* [key_dim][value_dim] sums */
    size_t slope_tokens, slope_waiting;
    float *slope_keys, *slope_values; /* [SLOPE_BLOCK][] of the tokens that wait for their product */
    float mean_logit;                 /* of the mean key at the origin of the queries */
    float *weight;                    /* [n] of the tokens of the cluster at work */
    float *sum;                       /* [max(key_dim, value_dim)] */
    float *row;                       /* likewise */
} build;

/* From where on clusters and segments grow, and to what. */
enum { GROWTH_START = 32768, MOST_CLUSTER_TOKENS = 256 };

static size_t grown(const dp_sequence_config *config, uint64_t first_token, size_t tokens, size_t most)
{
    if (first_token <= GROWTH_START) return tokens;
    const double factor = pow((double)first_token / GROWTH_START, (double)config->cluster_growth);
    const double n = floor((double)tokens * factor);
    return n < (double)most ? (size_t)n : most;
}

/* As many clusters to a segment everywhere: its slope takes the time of a hundred mean values, whatever its length. */
size_t dp_build_segment_tokens(const dp_sequence_config *config, uint64_t first_token)
{
    return grown(config, first_token, config->segment_tokens, DP_MAX_SEGMENT_TOKENS);
}

size_t dp_build_cluster_tokens(const dp_sequence_config *config, uint64_t first_token)
{
    return grown(config, first_token, config->tokens_per_cluster, MOST_CLUSTER_TOKENS);
}

size_t dp_build_clusters(const dp_sequence_config *config, uint64_t first_token, size_t n_tokens)
{
    const size_t most = dp_build_cluster_tokens(config, first_token), n = (n_tokens + most - 1) / most;
    return n ? n : 1;
}

bool dp_build_extends(const dp_sequence_config *config, uint64_t first_token, size_t n_tokens, size_t more)
{
    const bool small = n_tokens < DP_PANEL * dp_build_cluster_tokens(config, first_token);
    return small && n_tokens + more <= dp_build_segment_tokens(config, first_token);
}

static build carve(const dp_sequence *s, uint64_t first_token, size_t n, dp_scratch *scratch)
{
    const size_t n_clusters = dp_build_clusters(&s->config, first_token, n);
    const size_t widest = s->format.key_dim > s->format.value_dim ? s->format.key_dim : s->format.value_dim;
    build b = {.n_outliers = (size_t)((float)n_clusters * s->config.outlier_share)};
    b.kmeans = (dp_kmeans){.kernels = &s->runtime->kernels,
                           .n = n,
                           .dim = s->format.key_dim,
                           .n_means = n_clusters - b.n_outliers,
                           .iterations = s->config.iterations,
                           .clustering = s->config.clustering};
    dp_kmeans_carve(&b.kmeans, scratch);
    b.far_tokens = dp_scratch_take(scratch, n * sizeof *b.far_tokens);
    b.cluster = dp_scratch_take(scratch, n * sizeof *b.cluster);
    b.fill = dp_scratch_take(scratch, n_clusters * sizeof *b.fill);
    b.slope = dp_scratch_take(scratch, s->format.key_dim * s->format.value_dim * sizeof *b.slope);
    b.slope_keys = dp_scratch_take(scratch, SLOPE_BLOCK * s->format.key_dim * sizeof *b.slope_keys);
    b.slope_values = dp_scratch_take(scratch, SLOPE_BLOCK * s->format.value_dim * sizeof *b.slope_values);
    b.weight = dp_scratch_take(scratch, n * sizeof *b.weight);
    b.sum = dp_scratch_take(scratch, widest * sizeof *b.sum);
    b.row = dp_scratch_take(scratch, widest * sizeof *b.row);
    return b;
}

size_t dp_build_scratch_bytes(const dp_sequence *sequence, size_t n_tokens)
{
    dp_scratch empty = {0};
    carve(sequence, 0, n_tokens, &empty); /* no segment has more clusters than one at the start */
    return empty.used;
}

/* Loads the keys less their mean. A dimension whose mean is not finite keeps its origin at 0, so that one bad token
 * does not make all the others look bad too. */
static void load_keys(const dp_sequence *s, dp_segment *seg, const char *k, dp_kmeans *p)
{
    const dp_kernels *const kernels = p->kernels;
    float *const mean = seg->mean_key;
    for (size_t i = 0; i < p->n; i++)
        kernels->to_f32[s->format.type](p->x + i * p->dim, k + i * s->format.key_bytes, p->dim);
    memset(mean, 0, p->dim * sizeof *mean);
    for (size_t i = 0; i < p->n; i++) kernels->axpy(mean, p->x + i * p->dim, 1.0f, p->dim);
    for (size_t j = 0; j < p->dim; j++) {
        mean[j] /= (float)p->n;
        if (!isfinite(mean[j])) mean[j] = 0.0f;
    }
    for (size_t i = 0; i < p->n; i++) kernels->axpy(p->x + i * p->dim, mean, -1.0f, p->dim);
}

/* Of the mean key m at the origin: scale * y0.L'm. */
static float mean_logit(const dp_sequence *s, const dp_queries *queries, const dp_segment *seg)
{
    const size_t dim = s->format.key_dim;
    const float *const factor = dp_queries_factor(queries, dim);
    float sum = 0;
    for (size_t i = 0; i < dim; i++)
        sum += seg->mean_key[i] * s->runtime->kernels.dot(factor + i * dim, queries->vector, dim);
    return s->scale * sum;
}

/* x = L'k for all points. False where oneDNN fails. */
static bool change_metric(const dp_queries *queries, dp_kmeans *p)
{
    const dnnl_dim_t dim = (dnnl_dim_t)p->dim;
    float *const block = p->directions; /* free until the clustering starts */
    const size_t most = p->n_means;
    for (size_t first = 0; first < p->n; first += most) {
        const size_t n = p->n - first < most ? p->n - first : most;
        float *const x = p->x + first * p->dim;
        if (dnnl_sgemm('N', 'N', (dnnl_dim_t)n, dim, dim, 1.0f, x, dim, dp_queries_factor(queries, p->dim), dim, 0.0f,
                       block, dim) != dnnl_success)
            return false;
        memcpy(x, block, n * p->dim * sizeof *x);
    }
    return true;
}

/* Farthest first, NaN before all, the lower token first among equals. */
static int farther(const void *a, const void *b)
{
    const struct far_token *const x = a, *const y = b;
    const int x_nan = x->distance != x->distance, y_nan = y->distance != y->distance;
    if (x_nan != y_nan) return y_nan - x_nan;
    if (!x_nan && x->distance != y->distance) return x->distance < y->distance ? 1 : -1;
    return x->token < y->token ? -1 : x->token > y->token;
}

/* Takes the tokens farthest from their centroid out of their clusters: each will be a cluster of its own. */
static void take_outliers(build *b)
{
    dp_kmeans *const p = &b->kmeans;
    if (!b->n_outliers) return;
    for (size_t i = 0; i < p->n; i++)
        b->far_tokens[i] = (struct far_token){.distance = p->distance[i], .token = (uint32_t)i};
    qsort(b->far_tokens, p->n, sizeof *b->far_tokens, farther);
    for (size_t i = 0; i < b->n_outliers; i++) p->assignment[b->far_tokens[i].token] = UINT32_MAX;
    dp_kmeans_update(p);
}

/* The next cluster, of so many tokens; returns its number. */
static uint32_t add_cluster(dp_segment *seg, uint32_t size)
{
    seg->offset[seg->n_clusters + 1] = seg->offset[seg->n_clusters] + size;
    return seg->n_clusters++;
}

static void number_cluster(build *b, dp_segment *seg, size_t mean)
{
    b->fill[mean] = add_cluster(seg, (uint32_t)b->kmeans.count[mean]); /* for now: the cluster's new number */
}

/* The next mean from number `from` on whose count leaves that remainder in groups; or n_means. */
static size_t next_mean(const dp_kmeans *p, size_t from, size_t remainder)
{
    while (from < p->n_means && (!p->count[from] || p->count[from] % DP_CODE_GROUP != remainder)) from++;
    return from;
}

/* Numbers the clusters that have members, outliers last, and lays out their rows, so that clusters share few groups of
 * codes: whole groups first, halves by two, then three quarters and a quarter by turns. */
static void number_clusters(build *b, dp_segment *seg)
{
    dp_kmeans *const p = &b->kmeans;
    seg->n_clusters = seg->offset[0] = 0;
    for (size_t remainder = 0; remainder <= 2; remainder += 2)
        for (size_t j = next_mean(p, 0, remainder); j < p->n_means; j = next_mean(p, j + 1, remainder))
            number_cluster(b, seg, j);
    size_t three = next_mean(p, 0, 3), one = next_mean(p, 0, 1);
    for (uint32_t i = 0; i < 2 && seg->offset[seg->n_clusters] % DP_CODE_GROUP == 2 + i && one < p->n_means; i++) {
        number_cluster(b, seg, one); /* two quarters beside an odd half */
        one = next_mean(p, one + 1, 1);
    }
    while (three < p->n_means || one < p->n_means) {
        if (three < p->n_means) number_cluster(b, seg, three);
        three = next_mean(p, three + 1, 3);
        if (one < p->n_means) number_cluster(b, seg, one);
        one = next_mean(p, one + 1, 1);
    }
    for (size_t i = 0; i < p->n; i++)
        b->cluster[i] = p->assignment[i] != UINT32_MAX ? b->fill[p->assignment[i]] : add_cluster(seg, 1);
    seg->n_panels = (seg->n_clusters + DP_PANEL - 1) / DP_PANEL;
    memset(b->fill, 0, seg->n_clusters * sizeof *b->fill);
}

/* Moves the rows into their clusters' runs, or lists the clusters' tokens only. */
static void place_rows(const dp_sequence *s, const build *b, dp_segment *seg, const char *k, const char *v)
{
    const dp_row_format *const f = &s->format;
    for (uint32_t i = 0; i < seg->n_tokens; i++) {
        const uint32_t c = b->cluster[i], at = b->fill[c]++;
        seg->token[seg->offset[c] + at] = (uint16_t)i;
        if (f->borrowed) continue;
        memcpy((char *)dp_segment_keys(seg, f, c) + at * f->key_bytes, k + i * f->key_bytes, f->key_bytes);
        memcpy((char *)dp_segment_values(seg, f, c) + at * f->value_bytes, v + i * f->value_bytes, f->value_bytes);
    }
}

/* Weights of a cluster's tokens, and how many of them count by these. */
static float weigh_tokens(const dp_sequence *s, const dp_queries *queries, const build *b, const uint16_t *tokens,
                          uint32_t n)
{
    const dp_kmeans *const p = &b->kmeans;
    for (uint32_t i = 0; i < n; i++)
        b->weight[i] =
            queries->settled ? s->scale * p->kernels->dot(queries->vector, p->x + tokens[i] * p->dim, p->dim) : 0;
    if (queries->settled && s->config.softcap > 0) p->kernels->soft_cap(b->weight, n, b->mean_logit, s->config.softcap);
    const float top = p->kernels->max(b->weight, n);
    float mean = 0; /* of log weight, times the sum of weights */
    for (uint32_t i = 0; i < n; i++) {
        const float log_weight = b->weight[i] - top;
        b->weight[i] = expf(log_weight);
        if (b->weight[i] > 0) mean += b->weight[i] * log_weight;
    }
    float sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += b->weight[i];
    p->kernels->scale(b->weight, 1.0f / sum, n);
    return n == 1 ? 1.0f : expf(logf(sum) - mean / sum);
}

/* codes[j]: the c of 0 to 15 for which 2 c - 15 is nearest to x[j] * inverse; 0 for NaN. A loop that compilers vectorise. */
static void round_to_codes(const float *restrict x, float inverse, size_t n, uint8_t *restrict codes)
{
    for (size_t j = 0; j < n; j++) {
        float c = 0.5f * (x[j] * inverse + 15.0f) + 0.5f;
        c = c > 0.0f ? c : 0.0f;
        c = c < 15.0f ? c : 15.0f;
        codes[j] = (uint8_t)(int32_t)c;
    }
}

/* Token t's codes in its group: four dimensions at a time, those of the second half in the upper bits. */
static void store_token_codes(uint8_t *group, size_t t, const uint8_t *codes, size_t dim)
{
    for (size_t j = 0; j < dim / 2; j += 4) {
        uint32_t low, high;
        memcpy(&low, codes + j, sizeof low);
        memcpy(&high, codes + dim / 2 + j, sizeof high);
        low |= high << 4; /* no byte of either is above 15 */
        memcpy(group + dp_code_place(j, t), &low, sizeof low);
    }
}

/* The same for the signs, a byte for eight dimensions. */
static void store_token_signs(uint8_t *group, size_t t, const float *x, size_t dim)
{
    for (size_t j = 0; j < dim; j += 8) {
        int bits = 0;
        for (int i = 0; i < 8; i++) bits |= (x[j + (size_t)i] > 0) << i;
        group[j / 8 * DP_SIGN_GROUP + t] = (uint8_t)bits;
    }
}

/* The mean value of a cluster; false where it is not finite. */
static bool mean_value(const dp_sequence *s, const build *b, dp_segment *seg, uint32_t c)
{
    const dp_kernels *const kernels = &s->runtime->kernels;
    const dp_row_format *const f = &s->format;
    const uint16_t *const tokens = seg->token + seg->offset[c];
    memset(b->sum, 0, f->value_dim * sizeof *b->sum);
    for (uint32_t i = 0; i < dp_segment_size(seg, c); i++) {
        kernels->to_f32[f->type](b->row, b->values + tokens[i] * f->value_bytes, f->value_dim);
        kernels->axpy(b->sum, b->row, b->weight[i], f->value_dim);
    }
    seg->mean_step[c] = dp_quantise(b->sum, f->value_dim, seg->mean_values + (size_t)c * f->value_dim);
    return isfinite(seg->mean_step[c]);
}

/* Centroid, back in the keys' coordinates, into its panel; returns the step that it is rounded to. */
static float store_centroid(const dp_queries *queries, const build *b, dp_segment *seg, uint32_t c, float *centroid)
{
    const size_t dim = b->kmeans.dim;
    if (queries->settled) dp_queries_restore(queries, dim, centroid);
    int8_t rounded[DP_MAX_DIM];
    int8_t *const panel = seg->panels + c / DP_PANEL * dp_panel_bytes(dim);
    float *const steps = (float *)(void *)(panel + DP_PANEL * dim);
    steps[c % DP_PANEL] = dp_quantise(centroid, dim, rounded);
    for (size_t j = 0; j < dim; j++) panel[j / 4 * 64 + c % DP_PANEL * 4 + j % 4] = rounded[j];
    return steps[c % DP_PANEL];
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Exponent of the base of steps up to the given one: their bytes reach it. */
static uint8_t base_exponent(float largest)
{
    enum { OCTAVES = 15, MOST = 238 };
    if (!isfinite(largest)) return 1; /* all rows will be read */
    const uint32_t top = (bits_of(largest) + (1u << 19) - 1) >> 23;
    return (uint8_t)(top <= OCTAVES ? 1 : top - OCTAVES < MOST ? top - OCTAVES : MOST);
}

/* The byte of the smallest step that is not below x. */
static uint8_t step_byte(uint32_t base, float x)
{
    const uint32_t bits = bits_of(x);
    if (!isfinite(x) || bits <= base) return 0;
    const uint32_t byte = (bits - base + (1u << 19) - 1) >> 19;
    return (uint8_t)(byte < UINT8_MAX ? byte : UINT8_MAX);
}

/* Key less centroid, in b->row; returns the largest magnitude. b->sum is done with. */
static float load_difference(const dp_sequence *s, const build *b, uint32_t token, const float *centroid)
{
    const dp_row_format *const f = &s->format;
    s->runtime->kernels.to_f32[f->type](b->row, b->keys + token * f->key_bytes, f->key_dim);
    s->runtime->kernels.axpy(b->row, centroid, -1.0f, f->key_dim);
    for (size_t j = 0; j < f->key_dim; j++) b->sum[j] = fabsf(b->row[j]);
    return fmaxf(s->runtime->kernels.max(b->sum, f->key_dim), 0.0f);
}

/* The cluster's keys less its centroid, as that was rounded, in four bits, and their signs. b->weight is done with. */
static void store_codes(const dp_sequence *s, const build *b, dp_segment *seg, uint32_t c)
{
    const dp_row_format *const f = &s->format;
    const size_t dim = f->key_dim;
    const int8_t *const panel = seg->panels + c / DP_PANEL * dp_panel_bytes(dim);
    const float step_of_centroid = ((const float *)(const void *)(panel + DP_PANEL * dim))[c % DP_PANEL];
    float centroid[DP_MAX_DIM];
    for (size_t j = 0; j < dim; j++)
        centroid[j] = seg->mean_key[j] + step_of_centroid * panel[j / 4 * 64 + c % DP_PANEL * 4 + j % 4];
    const uint32_t first = seg->offset[c], n = dp_segment_size(seg, c);
    for (uint32_t i = 0; i < n; i++) b->weight[i] = load_difference(s, b, seg->token[first + i], centroid) / 15.0f;
    seg->code_base[c] = base_exponent(s->runtime->kernels.max(b->weight, n));
    const uint32_t base = (uint32_t)seg->code_base[c] << 23;
    uint8_t *const signs = seg->signs + dp_segment_sign_group(seg, c) * dp_sign_bytes(f);
    for (uint32_t i = 0; i < n; i++) {
        load_difference(s, b, seg->token[first + i], centroid);
        seg->code_step[first + i] = step_byte(base, b->weight[i]);
        const float inverse = 1.0f / dp_code_step(base, seg->code_step[first + i]);
        const size_t group = (first + i) / DP_CODE_GROUP, t = (first + i) % DP_CODE_GROUP;
        uint8_t codes[DP_MAX_DIM];
        round_to_codes(b->row, inverse, dim, codes);
        store_token_codes(seg->codes + group * dp_code_bytes(f), t, codes, dim);
        store_token_signs(signs + i / DP_SIGN_GROUP * dp_sign_bytes(f), i % DP_SIGN_GROUP, b->row, dim);
    }
}

static bool multiply_waiting(const dp_sequence *s, build *b)
{
    const dnnl_dim_t key_dim = (dnnl_dim_t)s->format.key_dim, value_dim = (dnnl_dim_t)s->format.value_dim;
    const dnnl_dim_t n = (dnnl_dim_t)b->slope_waiting;
    b->slope_waiting = 0;
    return !n || dnnl_sgemm('T', 'N', key_dim, value_dim, n, 1.0f, b->slope_keys, key_dim, b->slope_values, value_dim,
                            1.0f, b->slope, value_dim) == dnnl_success;
}

/* Adds the cluster's token-weighted covariance of keys (less the centroid, in their metric) and values to the sums. */
static bool add_covariance(const dp_sequence *s, build *b, const dp_segment *seg, uint32_t c, const float *centroid)
{
    const dp_kmeans *const p = &b->kmeans;
    const dp_row_format *const f = &s->format;
    const uint32_t n = dp_segment_size(seg, c);
    const uint16_t *const tokens = seg->token + seg->offset[c];
    for (uint32_t i = 0; i < n; i++) { /* sum a (k - c)(v - mean)' = sum a (k - c) v' */
        float *const key = b->slope_keys + b->slope_waiting * p->dim;
        memcpy(key, p->x + tokens[i] * p->dim, p->dim * sizeof *key);
        p->kernels->axpy(key, centroid, -1.0f, p->dim);
        p->kernels->scale(key, b->weight[i] * (float)n, p->dim);
        p->kernels->to_f32[f->type](b->slope_values + b->slope_waiting * f->value_dim,
                                    b->values + tokens[i] * f->value_bytes, f->value_dim);
        if (++b->slope_waiting == SLOPE_BLOCK && !multiply_waiting(s, b)) return false;
    }
    b->slope_tokens += n;
    return true;
}

/* A slope that is not finite is no slope: what made it so shows through its cluster. */
static void store_slope(const dp_sequence *s, const build *b, dp_segment *seg)
{
    const size_t key_dim = s->format.key_dim, value_dim = s->format.value_dim;
    const float mean = b->slope_tokens ? 1.0f / (float)b->slope_tokens : 0.0f;
    s->runtime->kernels.scale(b->slope, mean, key_dim * value_dim);
    for (size_t j = 0; j < key_dim; j++) {
        seg->slope_step[j] = dp_quantise(b->slope + j * value_dim, value_dim, seg->slope + j * value_dim);
        if (!isfinite(seg->slope_step[j])) seg->slope_step[j] = 0;
    }
}

/* All that the index keeps of a cluster. False where oneDNN fails. */
static bool describe_cluster(const dp_sequence *s, const dp_queries *queries, build *b, dp_segment *seg, uint32_t c)
{
    const dp_kmeans *const p = &b->kmeans;
    const dp_kernels *const kernels = p->kernels;
    const uint32_t n = dp_segment_size(seg, c);
    const uint16_t *const tokens = seg->token + seg->offset[c];
    const float size = weigh_tokens(s, queries, b, tokens, n);
    const bool finite = mean_value(s, b, seg, c);

    float centroid[DP_MAX_DIM] = {0};
    for (uint32_t i = 0; i < n; i++) kernels->axpy(centroid, p->x + tokens[i] * p->dim, b->weight[i], p->dim);
    float squares = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        memcpy(b->row, p->x + tokens[i] * p->dim, p->dim * sizeof *b->row);
        kernels->axpy(b->row, centroid, -1.0f, p->dim);
        squares += kernels->dot(b->row, b->row, p->dim);
    }
    if (seg->has_slope && n > 1 && !add_covariance(s, b, seg, c, centroid)) return false;
    if (n == 1) squares *= 0.0f; /* rounding of the weight; NaN stays */
    /* Rounding moves a key from its centroid, too: a token that stands alone and has much of the mass is worth its row. */
    const float step = store_centroid(queries, b, seg, c, centroid), rounding = step * step / 12.0f;
    if (s->format.has_codes) store_codes(s, b, seg, c);
    /* A spread of NaN makes every step read all rows, so that a NaN shows as in dense attention. */
    const float spread = finite ? squares / (float)n / (float)p->dim + rounding : NAN;
    const float limit = sqrtf(2.0f * fmaxf(logf(size), 0.0f));
    kernels->from_f32[DP_BF16](seg->size + c, &size, 1);
    kernels->from_f32[DP_BF16](seg->spread + c, &spread, 1);
    kernels->from_f32[DP_BF16](seg->limit + c, &limit, 1);
    return true;
}

bool dp_build_segment(const dp_sequence *s, const dp_queries *queries, dp_segment *seg, const char *k, const char *v,
                      dp_scratch *scratch)
{
    build b = carve(s, seg->first_token, seg->n_tokens, scratch);
    b.keys = k;
    b.values = v;
    load_keys(s, seg, k, &b.kmeans);
    if (queries->settled && s->config.softcap > 0) b.mean_logit = mean_logit(s, queries, seg);
    if (queries->settled && !change_metric(queries, &b.kmeans)) return false;
    if (!dp_kmeans_run(&b.kmeans)) return false;
    take_outliers(&b);
    number_clusters(&b, seg);
    place_rows(s, &b, seg, k, v);

    memset(b.slope, 0, s->format.key_dim * s->format.value_dim * sizeof *b.slope);
    for (uint32_t c = 0; c < seg->n_clusters; c++)
        if (!describe_cluster(s, queries, &b, seg, c)) return false;
    if (!multiply_waiting(s, &b)) return false;
    if (seg->has_slope) store_slope(s, &b, seg);
    return true;
}
