/* Which tokens of a cluster are worth their rows. Of a cluster that a query looks for usually one or two tokens have all of
 * the mass. Signs, a thirtieth of the rows, tell which may, and their keys, which do; codes, an eighth of the rows, tell it of
 * clusters with many such tokens. */
#include <math.h>

#include "attention/lines.h"
#include "attention/step.h"
#include "simd/half.h"

enum {
    CLUSTERS_PER_TASK = 32,
    BATCH_TOKENS = 64,
    AHEAD = 2 /* clusters whose signs are fetched before they are needed */
};

/* Tokens with a larger share of the mass than TOKEN_SHARE * epsilon^2 are read, for any query row. Values of different tokens
 * are independent: those left out, each with a share m of at most that, add up to a squared error of at most
 * sum m^2 <= TOKEN_SHARE * epsilon^2. */
static const float TOKEN_SHARE = 0.3f;

/* Of normal numbers with deviation 1 the signs, times SIGN_STEP / 15 of a token's largest element (two and a half
 * deviations), are the best guess, and off by SIGN_ERROR. That four elements of a query together are rounded to 32 steps is
 * nothing beside it. */
static const float SIGN_STEP = 4.65f, SIGN_ERROR = 0.6f;

/* A cluster that is estimated at so many times what a token needs to be read is not left to the signs: many tokens of middling
 * weight are worth their codes, too (KL of copying a text, 32K: 0.0093 without, 0.0054 with). */
static const float CLUSTER_SHARE = 3;

/* Signs are a quarter of the codes' bytes, and acquit less than a quarter of the clusters whose limit for a token is fewer
 * deviations than this above the centroid: they are not left to the signs either. */
static const float NEAR = 2.5f;

/* Further above the centroid no token is looked for: one in thousands would be found. 36 prompts of 32K tokens: an error of
 * 0.0412 and a KL of 0.0009 with it, 0.0412 and 0.0008 without, for 3.43 and 3.62 % of dense attention's bytes; at 3 the error
 * is 0.0413, at 2.9 the KL rises to 0.003. Synthetic keys, 1M tokens: a step takes 4.5 ms with it, 6.5 without, at the same
 * error. */
static const float REACH = 3.25f;

/* Queries in eight bits, 0.4 % of a logit's deviation where the codes have 10 %, as the kernels want them. */
static void round_query(const dp_step *step, dp_head_step *h, size_t row)
{
    const size_t dim = step->sequence->format.key_dim;
    const float *const q = h->q + row * dim;
    int8_t *const codes = h->codes + row * DP_CODE_GROUP * dim;
    float largest = 0;
    for (size_t j = 0; j < dim; j++) largest = fmaxf(largest, fabsf(q[j]));
    const float unit = largest / 127.0f, inverse = unit > 0 && isfinite(1.0f / unit) ? 1.0f / unit : 0.0f;
    h->sum_of_codes[row] = 0;
    for (size_t j = 0; j < dim; j++) {
        const int8_t code = (int8_t)lrintf(q[j] * inverse);
        for (size_t t = 0; t < DP_CODE_GROUP; t++) codes[dp_code_place(j, t)] = code;
        h->sum_of_codes[row] += code;
    }
    h->code_factor[row] = inverse > 0 ? unit * step->sequence->scale : 0.0f;
}

/* The sums of the sixteen subsets of four elements of a query, above the lowest of them, in steps of 1 / inverse. */
static void round_sums(const float *q, float inverse, uint8_t *table)
{
    float sum[16] = {0};
    for (size_t j = 0; j < 4; j++) sum[0] -= fminf(q[j], 0.0f);
    for (size_t j = 0; j < 4; j++)
        for (size_t i = 0; i < (size_t)1 << j; i++) sum[i + ((size_t)1 << j)] = sum[i] + q[j];
    for (size_t i = 0; i < 16; i++) {
        const int entry = (int)(sum[i] * inverse + 0.5f);
        table[i] = (uint8_t)(entry < DP_SIGN_MOST ? entry : DP_SIGN_MOST);
    }
}

static void tabulate_query(const dp_step *step, dp_head_step *h, size_t row)
{
    const size_t dim = step->sequence->format.key_dim;
    const float *const q = h->q + row * dim;
    uint8_t *const table = h->sign_table + row * 4 * dim;
    float largest = 0, all = 0;
    for (size_t j = 0; j < dim; j += 4) {
        const float sum = fabsf(q[j]) + fabsf(q[j + 1]) + (fabsf(q[j + 2]) + fabsf(q[j + 3]));
        largest = fmaxf(largest, sum);
        all += sum;
    }
    const float unit = largest / DP_SIGN_MOST, inverse = unit > 0 && isfinite(1.0f / unit) ? 1.0f / unit : 0.0f;
    for (size_t j = 0; j < dim; j += 4) round_sums(q + j, inverse, table + j % 8 / 4 * 2 * dim + j / 8 * 16);
    /* Of all elements with signs: sum of q sign = 2 (sum of the positive ones' q) - sum of q = 2 unit * table - sum of |q|. */
    h->sign_centre[row] = 0.5f * all * inverse;
    h->sign_factor[row] = inverse > 0 ? 2.0f * unit * SIGN_STEP * step->sequence->scale : 0.0f;
}

/* The logit that a soft cap, if there is one, makes this one of. */
static float uncapped(float logit, float cap)
{
    if (!(cap > 0)) return logit;
    return logit >= cap ? INFINITY : logit <= -cap ? -INFINITY : cap * atanhf(logit / cap);
}

static float centroid_logit(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref, size_t row)
{
    return h->mean_logit[ref->segment * step->rows + row] +
           step->sequence->scale * h->score[row * h->n_positions + ref->position];
}

/* What a row's logits of a cluster's tokens are known to be about: how far a token must be above the centroid to be worth
 * reading, and the deviation of the logits from the centroid's. */
typedef struct outlook {
    float above, deviation;
} outlook;

/* spread: the square root of the cluster's dispersion. */
static outlook outlook_for(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref, float spread,
                           size_t row)
{
    return (outlook){h->logit_limit[row] - centroid_logit(step, h, ref, row), h->deviation[row] * spread};
}

static float spread_of(const dp_head_step *h, const dp_cluster_ref *ref)
{
    return sqrtf(dp_f32_from_bf16(h->head->segments[ref->segment].spread[ref->cluster]));
}

/* Whether a cluster's estimate is more than what a token needs by so much that tokens of middling weight matter. */
static bool is_heavy(const dp_head_step *h, const dp_cluster_ref *ref, size_t row)
{
    return !(h->mass[row * h->n_positions + ref->position] <= CLUSTER_SHARE * h->token_limit[row]);
}

/* Marks the clusters that have a token in reach for any row, as far as that can be expected. */
static void mark_reached(const dp_step *step, dp_head_step *h)
{
    size_t position = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const size_t n = (size_t)segment->n_panels * DP_PANEL;
        for (size_t r = 0; r < step->rows; r++) {
            const size_t at = r * h->n_positions + position;
            step->kernels->mark_in_reach(h->score + at, h->mass + at, segment->spread, n, step->sequence->scale,
                                         h->logit_limit[r] - h->mean_logit[s * step->rows + r],
                                         REACH * REACH * h->variance[r], CLUSTER_SHARE * h->token_limit[r],
                                         SELECT_REACHED, h->flags + position);
        }
        position += n;
    }
}

/* The clusters that selection wants looked at, and that are not read anyway. */
static void list_looked(const dp_step *step, dp_head_step *h)
{
    const uint8_t asked = SELECT_LOOK | SELECT_REACHED;
    h->n_scanned = 0;
    size_t position = 0, token = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const size_t n = step->kernels->list_flagged(h->flags + position, segment->n_clusters, asked | SELECT_REFINE, asked,
                                                     h->estimated);
        for (size_t i = 0; i < n; i++) {
            const uint32_t c = h->estimated[i];
            h->scanned[h->n_scanned++] = (dp_cluster_ref){.segment = s,
                                                          .cluster = c,
                                                          .position = (uint32_t)position + c,
                                                          .first_token = (uint32_t)token + segment->offset[c]};
            h->counts.bytes_codes += dp_segment_size(segment, c) * sizeof *segment->code_step + 1;
        }
        position += (size_t)segment->n_panels * DP_PANEL;
        token += dp_segment_stale(segment) ? 0 : segment->n_tokens;
    }
}

void dp_scan_plan(const dp_step *step, dp_head_step *h)
{
    h->n_scanned = 0;
    if (!step->sequence->format.has_codes) return;
    const float share = TOKEN_SHARE * step->params.epsilon * step->params.epsilon;
    for (size_t r = 0; r < step->rows; r++) {
        h->token_limit[r] = share * h->total[r];
        h->logit_limit[r] = uncapped(h->reference[r] + logf(h->token_limit[r]), step->sequence->config.softcap);
        h->deviation[r] = sqrtf(h->variance[r]);
    }
    mark_reached(step, h);
    list_looked(step, h);
    for (size_t r = 0; h->n_scanned && r < step->rows; r++) {
        round_query(step, h, r);
        tabulate_query(step, h, r);
    }
}

size_t dp_scan_count_tasks(const dp_head_step *h)
{
    return (h->n_scanned + CLUSTERS_PER_TASK - 1) / CLUSTERS_PER_TASK;
}

/* A thread's memory. */
typedef struct scan_scratch {
    float *limit;     /* [rows] what a token's logit may be above the centroid's, by signs */
    float *centroid;  /* [rows] its logit */
    float *reference; /* [rows] less that where there is no soft cap */
    float *left;      /* [rows] mass of the tokens that are not read */
    float *mass;      /* [rows][BATCH_TOKENS] */
} scan_scratch;

size_t dp_scan_scratch_bytes(const dp_step *step)
{
    return step->rows * (4 + BATCH_TOKENS) * sizeof(float);
}

/* Tokens of a cluster: those from number `first` of the segment on. */
typedef struct run {
    size_t first, n;
} run;

static run run_of(const dp_segment *segment, uint32_t cluster)
{
    return (run){segment->offset[cluster], dp_segment_size(segment, cluster)};
}

/* A cluster's signs; none without a cluster. */
static dp_lines lines_of_signs(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref)
{
    if (!ref) return (dp_lines){0};
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const size_t bytes = dp_sign_bytes(&step->sequence->format);
    return dp_lines_of(segment->signs + dp_segment_sign_group(segment, ref->cluster) * bytes,
                       dp_segment_sign_groups(segment, ref->cluster) * bytes);
}

/* How many groups of codes have tokens of a run. */
static size_t groups_of(run tokens)
{
    return (tokens.first % DP_CODE_GROUP + tokens.n + DP_CODE_GROUP - 1) / DP_CODE_GROUP;
}

/* A cluster's codes; none without a cluster. */
static dp_lines lines_of_codes(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref)
{
    if (!ref) return (dp_lines){0};
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const run all = run_of(segment, ref->cluster);
    const size_t bytes = dp_code_bytes(&step->sequence->format);
    return dp_lines_of(segment->codes + all.first / DP_CODE_GROUP * bytes, groups_of(all) * bytes);
}

static uint32_t step_base(const dp_segment *segment, uint32_t cluster)
{
    return (uint32_t)segment->code_base[cluster] << 23;
}

/* What the signs of a cluster's tokens' keys, less the centroid, may say for each row: where the elements are normal, they tell a
 * logit to SIGN_ERROR of its deviation. False where they need not be asked. */
static bool set_limits(const dp_step *step, const dp_head_step *h, const dp_cluster_ref *ref, const scan_scratch *w)
{
    const float spread = spread_of(h, ref);
    bool ask = true;
    for (size_t r = 0; r < step->rows; r++) {
        const outlook o = outlook_for(step, h, ref, spread, r);
        ask &= !is_heavy(h, ref, r) && !(o.above < NEAR * o.deviation);
        w->limit[r] = o.above - SIGN_ERROR * o.deviation;
    }
    return ask;
}

/* Marks those tokens of a cluster that may have more than a row's limit by their signs; returns how many. */
static size_t mark_suspects(const dp_step *step, const dp_head_step *h, dp_cluster_ref *ref, dp_lines ahead,
                            const scan_scratch *w)
{
    const dp_row_format *const f = &step->sequence->format;
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const run all = run_of(segment, ref->cluster);
    uint8_t *const marks = h->wanted + ref->first_token;
    const dp_sign_queries q = {.heads = step->rows,
                               .d = f->key_dim,
                               .table = h->sign_table,
                               .centre = h->sign_centre,
                               .factor = h->sign_factor,
                               .limit = w->limit};
    const dp_sign_tokens tokens = {
        .signs = segment->signs + dp_segment_sign_group(segment, ref->cluster) * dp_sign_bytes(f),
        .step = segment->code_step + all.first,
        .step_base = step_base(segment, ref->cluster),
        .n = all.n,
        .ahead = ahead.first,
        .ahead_lines = ahead.n};
    ref->sign_groups = (uint32_t)dp_segment_sign_groups(segment, ref->cluster);
    if (!step->kernels->signs_exceed(&q, &tokens, marks)) return 0;
    size_t n = 0;
    for (size_t i = 0; i < all.n; i++) n += marks[i];
    return n;
}

/* Tokens that the signs do not acquit. One in twenty is read in the end; their keys themselves tell which: in 16 bits a key has
 * as many bytes as the codes of the four tokens that lie together, and many keys are one call (128K tokens: with a call for
 * each group of codes a step takes 1.04 times as long). */
typedef struct suspects {
    size_t n;
    dp_row key[BATCH_TOKENS];
    uint8_t *mark[BATCH_TOKENS];
    uint32_t position[BATCH_TOKENS]; /* of their clusters */
} suspects;

/* Of these tokens those stay marked that are to be read, the others' mass is added to their clusters' (w->left has that of all
 * clusters together, of no use here). */
static void weigh_suspects(const dp_step *step, const dp_head_step *h, suspects *s, const scan_scratch *w)
{
    const dp_kernels *const kernels = step->kernels;
    const dp_row_format *const f = &step->sequence->format;
    const float cap = step->sequence->config.softcap;
    uint8_t wanted[BATCH_TOKENS];
    kernels->key_logits[f->type](h->q, step->rows, f->key_dim, s->key, s->n, 0, step->sequence->scale, w->mass,
                                 BATCH_TOKENS);
    for (size_t r = 0; r < step->rows; r++) {
        if (cap > 0) kernels->soft_cap(w->mass + r * BATCH_TOKENS, s->n, 0.0f, cap);
        w->left[r] = 0;
    }
    kernels->split_masses(w->mass, BATCH_TOKENS, step->rows, s->n, h->reference, h->token_limit, wanted, w->left);
    for (size_t i = 0; i < s->n; i++) {
        *s->mark[i] = wanted[i];
        for (size_t r = 0; !wanted[i] && r < step->rows; r++)
            h->mass[r * h->n_positions + s->position[i]] += w->mass[r * BATCH_TOKENS + i];
    }
    s->n = 0;
}

/* Lists a cluster's n marked tokens, whose keys are fetched; the estimate stands for the others. */
static void list_suspects(const dp_step *step, const dp_head_step *h, dp_cluster_ref *ref, size_t n, suspects *s,
                          const scan_scratch *w)
{
    const dp_row_format *const f = &step->sequence->format;
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const size_t all = dp_segment_size(segment, ref->cluster);
    const dp_run rows = dp_segment_run(segment, f, ref->cluster);
    uint8_t *const marks = h->wanted + ref->first_token;
    for (size_t r = 0; r < step->rows; r++)
        h->mass[r * h->n_positions + ref->position] *= (float)(all - n) / (float)all;
    for (size_t i = dp_next_mark(marks, 0, all); i < all; i = dp_next_mark(marks, i + 1, all)) {
        if (s->n == BATCH_TOKENS) weigh_suspects(step, h, s, w);
        const dp_run row = dp_run_from(rows, f, i);
        dp_row value;
        dp_run_list(&row, f, &h->head->view, 1, &s->key[s->n], &value);
        dp_prefetch(dp_lines_of(dp_row_address(s->key[s->n]), f->key_bytes));
        s->mark[s->n] = marks + i;
        s->position[s->n++] = ref->position;
    }
    ref->keys = (uint32_t)n;
    h->flags[ref->position] |= SELECT_ESTIMATE | SELECT_SCAN;
}

/* Of a batch's tokens those stay marked that are to be read, the mass of the others is added to w->left. */
static void scan_batch(const dp_step *step, const dp_head_step *h, const dp_segment *segment, uint32_t cluster,
                       run batch, dp_lines ahead, uint8_t *wanted, const scan_scratch *w)
{
    const dp_code_queries q = {.heads = step->rows,
                               .d = step->sequence->format.key_dim,
                               .q = h->codes,
                               .sum_of_q = h->sum_of_codes,
                               .factor = h->code_factor};
    const size_t group = batch.first / DP_CODE_GROUP;
    const dp_code_tokens tokens = {.codes = segment->codes + group * dp_code_bytes(&step->sequence->format),
                                   .step = segment->code_step + group * DP_CODE_GROUP,
                                   .step_base = step_base(segment, cluster),
                                   .skip = batch.first % DP_CODE_GROUP,
                                   .n = batch.n,
                                   .ahead = ahead.first,
                                   .ahead_lines = ahead.n};
    const float cap = step->sequence->config.softcap;
    step->kernels->code_logits(&q, &tokens, w->mass, BATCH_TOKENS);
    for (size_t r = 0; cap > 0 && r < step->rows; r++)
        step->kernels->soft_cap(w->mass + r * BATCH_TOKENS, batch.n, w->centroid[r], cap);
    step->kernels->split_masses(w->mass, BATCH_TOKENS, step->rows, batch.n, w->reference, h->token_limit, wanted,
                                w->left);
}

/* All tokens of a cluster. */
static void scan_cluster(const dp_step *step, const dp_head_step *h, dp_cluster_ref *ref, dp_lines ahead,
                         const scan_scratch *w)
{
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const run all = run_of(segment, ref->cluster);
    uint8_t *const marks = h->wanted + ref->first_token;
    for (size_t r = 0; r < step->rows; r++) {
        w->centroid[r] = centroid_logit(step, h, ref, r);
        w->reference[r] = h->reference[r] - (step->sequence->config.softcap > 0 ? 0.0f : w->centroid[r]);
        w->left[r] = 0;
    }
    for (size_t i = 0; i < all.n; i += BATCH_TOKENS) {
        const run batch = {all.first + i, all.n - i < BATCH_TOKENS ? all.n - i : BATCH_TOKENS};
        scan_batch(step, h, segment, ref->cluster, batch, ahead, marks + i, w);
        ahead = (dp_lines){0};
    }
    ref->code_groups = (uint32_t)groups_of(all);
    for (size_t r = 0; r < step->rows; r++) h->mass[r * h->n_positions + ref->position] = w->left[r];
    h->flags[ref->position] |= SELECT_ESTIMATE | SELECT_SCAN;
}

/* The bytes that go with both signs and codes: a line or two, not worth handing out. */
static void prefetch_steps(const dp_head_step *h, const dp_cluster_ref *ref)
{
    const dp_segment *const segment = &h->head->segments[ref->segment];
    const run all = run_of(segment, ref->cluster);
    dp_prefetch(dp_lines_of(segment->code_step + all.first, all.n * sizeof *segment->code_step));
}

/* Whether a cluster's codes are to be read, which may be fewer bytes than the keys of those tokens that its signs do not acquit.
 * Those tokens are listed if not. */
static bool needs_codes(const dp_step *step, const dp_head_step *h, dp_cluster_ref *ref, dp_lines ahead, suspects *s,
                        const scan_scratch *w)
{
    if (!set_limits(step, h, ref, w)) {
        dp_prefetch(ahead);
        return true;
    }
    const size_t n = mark_suspects(step, h, ref, ahead, w);
    if (!n) return false;
    const dp_row_format *const f = &step->sequence->format;
    const run all = run_of(&h->head->segments[ref->segment], ref->cluster);
    if (n * f->key_bytes > groups_of(all) * dp_code_bytes(f)) return true;
    list_suspects(step, h, ref, n, s, w);
    return false;
}

/* First the signs of the clusters, then codes and keys. While one is worked on another one is on its way from memory, a line
 * now and then: all of its lines at once, and the core waits for memory to take them (half of the time of this function, at
 * 128K tokens). */
void dp_scan_run(const dp_step *step, const dp_head_step *h, size_t task, float *scratch)
{
    const size_t rows = step->rows;
    const scan_scratch w = {scratch, scratch + rows, scratch + 2 * rows, scratch + 3 * rows, scratch + 4 * rows};
    const size_t begin = task * CLUSTERS_PER_TASK, left = h->n_scanned - begin;
    dp_cluster_ref *const refs = h->scanned + begin;
    const size_t n = left < CLUSTERS_PER_TASK ? left : CLUSTERS_PER_TASK;
    dp_cluster_ref *coded[CLUSTERS_PER_TASK + 1] = {0};
    size_t n_coded = 0;
    suspects s;
    s.n = 0;
    for (size_t i = 0; i < n && i < AHEAD; i++) {
        dp_prefetch(lines_of_signs(step, h, &refs[i]));
        prefetch_steps(h, &refs[i]);
    }
    for (size_t i = 0; i < n; i++) {
        const dp_cluster_ref *const next = i + AHEAD < n ? &refs[i + AHEAD] : NULL;
        if (next) prefetch_steps(h, next);
        if (!needs_codes(step, h, &refs[i], lines_of_signs(step, h, next), &s, &w)) continue;
        if (!n_coded) dp_prefetch(lines_of_codes(step, h, &refs[i]));
        coded[n_coded++] = &refs[i];
    }
    for (size_t i = 0; i < n_coded; i++)
        scan_cluster(step, h, coded[i], lines_of_codes(step, h, coded[i + 1]), &w);
    if (s.n) weigh_suspects(step, h, &s, &w);
}
