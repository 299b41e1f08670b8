/* Which tokens of a cluster are worth their rows. Of a cluster that a query looks for usually one or two tokens have all of
 * the mass. Signs, a thirtieth of the rows, tell whether any may; if so codes, an eighth of the rows, tell which. */
#include <math.h>
#include <string.h>

#include "attention/step.h"

enum { CLUSTERS_PER_TASK = 32, BATCH_TOKENS = 64 };

/* Tokens with a larger share of the mass than TOKEN_SHARE * epsilon^2 are read, for any query row. Values of different tokens
 * are independent: those left out, each with a share m of at most that, add up to a squared error of at most
 * sum m^2 <= TOKEN_SHARE * epsilon^2. */
static const float TOKEN_SHARE = 0.3f;

/* Of normal numbers with deviation 1 the signs, times SIGN_STEP / 15 of a token's largest element (two and a half
 * deviations), are the best guess, and off by SIGN_ERROR. */
static const float SIGN_STEP = 4.8f, SIGN_ERROR = 0.6f;

/* A cluster that is estimated at so many times what a token needs to be read is not left to the signs: many tokens of middling
 * weight are worth their codes, too (KL of copying a text, 32K: 0.0093 without, 0.0054 with). */
static const float CLUSTER_SHARE = 3;

/* Queries in eight bits: 0.4 % of a logit's deviation, where the codes have 10 %. */
static void round_query(const dp_step *step, dp_head_step *h, size_t row)
{
    const size_t dim = step->sequence->format.key_dim;
    const float *const q = h->q + row * dim;
    float largest = 0;
    for (size_t j = 0; j < dim; j++) largest = fmaxf(largest, fabsf(q[j]));
    const float unit = largest / 127.0f, inverse = unit > 0 && isfinite(1.0f / unit) ? 1.0f / unit : 0.0f;
    for (size_t j = 0; j < dim; j++) h->codes[row * dim + j] = (int8_t)lrintf(q[j] * inverse);
    h->code_factor[row] = inverse > 0 ? unit * step->sequence->scale : 0.0f;
}

void dp_scan_plan(const dp_step *step, dp_head_step *h)
{
    h->n_scanned = 0;
    size_t position = 0, token = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        for (uint32_t c = 0; c < segment->n_clusters; c++)
            if ((h->flags[position + c] & (SELECT_LOOK | SELECT_REFINE)) == SELECT_LOOK)
                h->scanned[h->n_scanned++] = (dp_cluster_ref){.segment = s,
                                                              .cluster = c,
                                                              .position = (uint32_t)position + c,
                                                              .first_token = (uint32_t)token + segment->offset[c]};
        position += (size_t)segment->n_panels * DP_PANEL;
        token += dp_segment_stale(segment) ? 0 : segment->n_tokens;
    }
    const float share = TOKEN_SHARE * step->params.epsilon * step->params.epsilon;
    for (size_t r = 0; h->n_scanned && r < step->rows; r++) {
        round_query(step, h, r);
        h->token_limit[r] = share * h->total[r];
        h->sign_factor[r] = SIGN_STEP * h->code_factor[r];
    }
}

size_t dp_scan_count_tasks(const dp_head_step *h)
{
    return (h->n_scanned + CLUSTERS_PER_TASK - 1) / CLUSTERS_PER_TASK;
}

static void prefetch(const void *x, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)x + i, 0, 3);
}

/* A thread's memory. */
typedef struct scan_scratch {
    float *base; /* [rows] logits of the segment's mean key */
    float *sum;  /* [rows] */
    float *mass; /* [rows][BATCH_TOKENS] */
} scan_scratch;

size_t dp_scan_scratch_bytes(const dp_step *step)
{
    return step->rows * (2 + BATCH_TOKENS) * sizeof(float);
}

/* Masses of up to BATCH_TOKENS tokens of a cluster, and their sums; true where one is above its row's limit. */
static bool estimate(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref, size_t first, size_t n,
                     const scan_scratch *w)
{
    const dp_kernels *const kernels = step->kernels;
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const size_t dim = step->sequence->format.key_dim, at = segment->offset[ref->cluster] + first;
    kernels->code_logits(h->codes, h->code_factor, step->rows, dim, segment->codes + at * dim / 2,
                         segment->code_step + at, n, w->mass, BATCH_TOKENS);
    bool above = false;
    for (size_t r = 0; r < step->rows; r++) {
        float *const mass = w->mass + r * BATCH_TOKENS;
        const float centroid = w->base[r] + step->sequence->scale * h->score[r * h->n_positions + ref->position];
        w->sum[r] = kernels->exp_sum(mass, n, h->reference[r] - centroid);
        above |= !(kernels->max(mass, n) <= h->token_limit[r]);
    }
    return above;
}

/* Whether any of n tokens may have more than its row's limit, by the signs of their keys less the centroid. Where the
 * elements are normal, these are known to SIGN_ERROR of their deviation. */
static bool may_matter(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref, size_t first, size_t n,
                       const scan_scratch *w)
{
    const dp_kernels *const kernels = step->kernels;
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const size_t dim = step->sequence->format.key_dim, at = segment->offset[ref->cluster] + first;
    float spread;
    kernels->to_f32[DP_BF16](&spread, segment->spread + ref->cluster, 1);
    kernels->sign_logits(h->codes, h->sign_factor, step->rows, dim, segment->signs + at * dim / 8,
                         segment->code_step + at, n, w->mass, BATCH_TOKENS);
    bool may = false;
    for (size_t r = 0; r < step->rows; r++) {
        const float centroid = w->base[r] + step->sequence->scale * h->score[r * h->n_positions + ref->position];
        const float largest =
            centroid + kernels->max(w->mass + r * BATCH_TOKENS, n) + SIGN_ERROR * sqrtf(h->variance[r] * spread);
        may |= !(expf(largest - h->reference[r]) <= h->token_limit[r]);
    }
    return may;
}

/* Marks the tokens to be read, and puts the mass of the others in place of the cluster's estimate. */
static void scan_cluster(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref, const scan_scratch *w)
{
    const size_t size = dp_segment_size(&h->head->segments[ref->segment], ref->cluster);
    float *const left = h->mass + ref->position; /* [rows], n_positions apart */
    bool may = false;
    for (size_t r = 0; r < step->rows; r++) may |= !(left[r * h->n_positions] <= CLUSTER_SHARE * h->token_limit[r]);
    for (size_t first = 0; first < size && !may; first += BATCH_TOKENS)
        may = may_matter(step, h, ref, first, size - first < BATCH_TOKENS ? size - first : BATCH_TOKENS, w);
    if (!may) return;
    h->flags[ref->position] |= SELECT_ESTIMATE | SELECT_SCAN;
    for (size_t r = 0; r < step->rows; r++) left[r * h->n_positions] = 0;
    for (size_t first = 0; first < size; first += BATCH_TOKENS) {
        const size_t n = size - first < BATCH_TOKENS ? size - first : BATCH_TOKENS;
        uint8_t *const wanted = h->wanted + ref->first_token + first;
        memset(wanted, 0, n);
        if (estimate(step, h, ref, first, n, w)) {
            for (size_t r = 0; r < step->rows; r++)
                for (size_t i = 0; i < n; i++) wanted[i] |= !(w->mass[r * BATCH_TOKENS + i] <= h->token_limit[r]);
            for (size_t r = 0; r < step->rows; r++) {
                w->sum[r] = 0;
                for (size_t i = 0; i < n; i++) w->sum[r] += wanted[i] ? 0 : w->mass[r * BATCH_TOKENS + i];
            }
        }
        for (size_t r = 0; r < step->rows; r++) left[r * h->n_positions] += w->sum[r];
    }
}

void dp_scan_run(const dp_step *step, const dp_head_step *h, size_t task, float *scratch)
{
    const dp_row_format *const f = &step->sequence->format;
    const scan_scratch w = {scratch, scratch + step->rows, scratch + 2 * step->rows};
    const size_t first = task * CLUSTERS_PER_TASK;
    const size_t last = h->n_scanned - first < CLUSTERS_PER_TASK ? h->n_scanned : first + CLUSTERS_PER_TASK;
    for (size_t i = first; i < last; i++) {
        const dp_cluster_ref *const ref = &h->scanned[i];
        const dp_segment *const segment = &h->head->segments[ref->segment];
        if (i + 1 < last) { /* fetch the next cluster meanwhile */
            const dp_cluster_ref *const next = &h->scanned[i + 1];
            const dp_segment *const its = &h->head->segments[next->segment];
            const size_t n =
                dp_segment_size(its, next->cluster) < BATCH_TOKENS ? dp_segment_size(its, next->cluster) : BATCH_TOKENS;
            prefetch(its->signs + its->offset[next->cluster] * f->key_dim / 8, n * f->key_dim / 8);
            prefetch(its->code_step + its->offset[next->cluster], n * sizeof *its->code_step);
        }
        if (i == first || ref->segment != ref[-1].segment)
            for (size_t r = 0; r < step->rows; r++)
                w.base[r] =
                    step->sequence->scale * step->kernels->dot(h->q + r * f->key_dim, segment->mean_key, f->key_dim);
        scan_cluster(step, h, ref, &w);
    }
}
