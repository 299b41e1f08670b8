/* From rows in token order to a segment. */
#include "index/build.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "index/kmeans.h"

/* Work of one build. */
typedef struct build {
    dp_kmeans kmeans;
    size_t n_outliers;
    struct far_token {
        float distance;
        uint32_t token;
    } * far_tokens;    /* [n] */
    uint32_t *cluster; /* [n] token -> cluster of the segment */
    uint32_t *fill;    /* [n_clusters] rows already placed */
    float *sum;        /* [max(key_dim, value_dim)] */
    float *row;        /* likewise */
} build;

size_t dp_build_clusters(const dp_sequence_config *config, size_t n_tokens)
{
    const size_t n = (n_tokens + config->tokens_per_cluster - 1) / config->tokens_per_cluster;
    return n ? n : 1;
}

static build carve(const dp_sequence *s, size_t n, dp_scratch *scratch)
{
    const size_t n_clusters = dp_build_clusters(&s->config, n);
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
    b.sum = dp_scratch_take(scratch, widest * sizeof *b.sum);
    b.row = dp_scratch_take(scratch, widest * sizeof *b.row);
    return b;
}

size_t dp_build_scratch_bytes(const dp_sequence *sequence, size_t n_tokens)
{
    dp_scratch empty = {0};
    carve(sequence, n_tokens, &empty);
    return empty.used;
}

/* Loads the keys less their mean. A dimension whose mean is not finite keeps its origin at 0, so that one bad token
 * does not make all the others look bad too. */
static void load_keys(const dp_sequence *s, dp_segment *seg, const char *k, dp_kmeans *p)
{
    const dp_kernels *const kernels = p->kernels;
    float *const mean = seg->mean_key;
    kernels->to_f32[s->format.type](p->x, k, p->n * p->dim);
    memset(mean, 0, p->dim * sizeof *mean);
    for (size_t i = 0; i < p->n; i++) kernels->axpy(mean, p->x + i * p->dim, 1.0f, p->dim);
    for (size_t j = 0; j < p->dim; j++) {
        mean[j] /= (float)p->n;
        if (!isfinite(mean[j])) mean[j] = 0.0f;
    }
    for (size_t i = 0; i < p->n; i++) kernels->axpy(p->x + i * p->dim, mean, -1.0f, p->dim);
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

/* Numbers the clusters that have members, single tokens last, and lays out their rows. */
static void number_clusters(build *b, dp_segment *seg)
{
    dp_kmeans *const p = &b->kmeans;
    uint32_t n = 0, row = 0;
    for (size_t j = 0; j < p->n_means; j++) {
        if (!p->count[j]) continue;
        if (n != j) memcpy(p->centroids + n * p->dim, p->centroids + j * p->dim, p->dim * sizeof *p->centroids);
        seg->offset[n] = row;
        row += p->count[j];
        b->fill[j] = n++; /* for now: the cluster's new number */
    }
    for (size_t i = 0; i < p->n; i++) {
        if (p->assignment[i] != UINT32_MAX) {
            b->cluster[i] = b->fill[p->assignment[i]];
            continue;
        }
        seg->offset[n] = row++;
        b->cluster[i] = n++;
    }
    seg->offset[n] = row;
    seg->n_clusters = n;
    seg->n_panels = (n + DP_PANEL - 1) / DP_PANEL;
    memset(b->fill, 0, n * sizeof *b->fill);
}

/* Moves the rows into their clusters' runs. */
static void place_rows(const dp_sequence *s, const build *b, dp_segment *seg, const char *k, const char *v)
{
    const dp_row_format *const f = &s->format;
    for (uint32_t i = 0; i < seg->n_tokens; i++) {
        const uint32_t c = b->cluster[i], at = b->fill[c]++;
        memcpy((char *)dp_segment_keys(seg, f, c) + at * f->key_bytes, k + i * f->key_bytes, f->key_bytes);
        memcpy((char *)dp_segment_values(seg, f, c) + at * f->value_bytes, v + i * f->value_bytes, f->value_bytes);
        seg->token[seg->offset[c] + at] = (uint16_t)i;
    }
}

/* The mean value of a cluster; false where it is not finite. */
static bool mean_value(const dp_sequence *s, build *b, dp_segment *seg, uint32_t c)
{
    const dp_kernels *const kernels = &s->runtime->kernels;
    const dp_row_format *const f = &s->format;
    const uint32_t size = dp_segment_size(seg, c);
    memset(b->sum, 0, f->value_dim * sizeof *b->sum);
    for (uint32_t i = 0; i < size; i++) {
        kernels->to_f32[f->type](b->row, dp_segment_values(seg, f, c) + i * f->value_bytes, f->value_dim);
        kernels->axpy(b->sum, b->row, 1.0f, f->value_dim);
    }
    kernels->scale(b->sum, 1.0f / (float)size, f->value_dim);
    kernels->from_f32[DP_BF16](seg->mean_values + (size_t)c * f->value_dim, b->sum, f->value_dim);
    bool finite = true;
    for (size_t j = 0; j < f->value_dim; j++) finite &= isfinite(b->sum[j]) != 0;
    return finite;
}

/* Centroid (into its panel) and dispersion of a cluster. */
static void key_statistics(build *b, dp_segment *seg, uint32_t c)
{
    const dp_kmeans *const p = &b->kmeans;
    const uint32_t size = dp_segment_size(seg, c);
    const uint16_t *const tokens = seg->token + seg->offset[c];
    const float *centroid = p->centroids + (size_t)c * p->dim;
    if (p->assignment[tokens[0]] == UINT32_MAX) centroid = p->x + tokens[0] * p->dim; /* stands alone */
    float squares = 0.0f;
    for (uint32_t i = 0; i < size; i++) {
        memcpy(b->row, p->x + tokens[i] * p->dim, p->dim * sizeof *b->row);
        p->kernels->axpy(b->row, centroid, -1.0f, p->dim);
        squares += p->kernels->dot(b->row, b->row, p->dim);
    }
    seg->size[c] = (float)size;
    seg->spread[c] = squares / (float)size / (float)p->dim;
    seg->limit[c] = sqrtf(2.0f * logf((float)size));

    uint16_t stored[512];
    p->kernels->from_f32[DP_BF16](stored, centroid, p->dim);
    uint16_t *const panel = seg->panels + (size_t)(c / DP_PANEL) * DP_PANEL * p->dim + c % DP_PANEL * 2;
    for (size_t j = 0; j < p->dim; j++) panel[j / 2 * (2 * DP_PANEL) + j % 2] = stored[j];
}

bool dp_build_segment(const dp_sequence *s, dp_segment *seg, const char *k, const char *v, dp_scratch *scratch)
{
    build b = carve(s, seg->n_tokens, scratch);
    load_keys(s, seg, k, &b.kmeans);
    if (!dp_kmeans_run(&b.kmeans)) return false;
    take_outliers(&b);
    number_clusters(&b, seg);
    place_rows(s, &b, seg, k, v);

    const size_t padded = (size_t)seg->n_panels * DP_PANEL;
    memset(seg->panels, 0, padded * s->format.key_dim * sizeof *seg->panels);
    memset(seg->size, 0, padded * sizeof *seg->size);
    memset(seg->spread, 0, padded * sizeof *seg->spread);
    memset(seg->limit, 0, padded * sizeof *seg->limit);
    for (uint32_t c = 0; c < seg->n_clusters; c++) {
        const bool finite = mean_value(s, &b, seg, c);
        key_statistics(&b, seg, c);
        if (!finite)
            seg->spread[c] = NAN; /* makes every step read all rows, so that a NaN shows as in dense attention */
    }
    return true;
}
