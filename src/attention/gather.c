/* What an item contributes: attention over rows, token by token, or over mean values with estimated masses. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "attention/step.h"

enum {
    /* Most rows whose logits are taken together before their values. Dense, bf16, d 128, four heads, one thread: 60.1 ns a
     * token; with 64 rows 61.1, with 32 rows 67.2. */
    BATCH_ROWS = 128,
    BATCH_BYTES = 64 << 10, /* of a batch's keys and values: this one and the next stay in L2 */
};

/* See is_heavy. A tenth to an eighth less of mean values and slopes is read at 32K tokens, the error stays; so it does with
 * 1 where a model's queries go, but not where all that clusters miss is in the slope. */
static const float SLOPE_SHARE = 0.1f;

/* A partial is [rows][2] maximum and sum, then [rows][value_dim] values, relative to exp(maximum). */
static float *accumulators(const dp_step *step, float *partial)
{
    return partial + 2 * step->rows;
}

/* A thread's memory. The lists hold the batch at work, then the one after it, whose rows are fetched meanwhile. */
typedef struct gather_scratch {
    dp_row keys[2 * BATCH_ROWS], values[2 * BATCH_ROWS];
    float units[BATCH_ROWS]; /* of mean values */
    float moving[BATCH_ROWS]; /* 1 for clusters of more than one token, times the soft cap's slope, or 0 */
    float weights[];          /* [rows][BATCH_ROWS], then a mass per row */
} gather_scratch;

size_t dp_gather_scratch_bytes(const dp_step *step)
{
    return sizeof(gather_scratch) + step->rows * (BATCH_ROWS + 1) * sizeof(float);
}

/* Caps a row's logits where that is asked for, brings its running maximum up to the batch's, and makes weights of them. */
static void weigh(const dp_step *step, float *state, float *values, float *logits, size_t n)
{
    const float cap = step->sequence->config.softcap;
    if (cap > 0) step->kernels->soft_cap(logits, n, 0.0f, cap);
    const float top = step->kernels->max(logits, n);
    if (top > state[0]) {
        if (state[0] > -INFINITY) {
            const float factor = expf(state[0] - top);
            state[1] *= factor;
            step->kernels->scale(values, factor, step->sequence->format.value_dim);
        }
        state[0] = top;
    }
    state[1] += step->kernels->exp_sum(logits, n, state[0]);
}

/* A place in a head's pieces, and rows from there on that the same query rows see: those from first_row. */
typedef struct cursor {
    size_t piece, row;
} cursor;
typedef struct batch {
    size_t n, first_row;
} batch;

static batch list_batch(const dp_row_format *f, const dp_head_step *head, size_t last, cursor *at, dp_row *keys,
                        dp_row *values)
{
    const dp_piece *const pieces = head->pieces;
    const size_t fitting = BATCH_BYTES / (f->key_bytes + f->value_bytes);
    const size_t most = fitting < BATCH_ROWS ? fitting : BATCH_ROWS;
    batch b = {0};
    if (at->piece == last) return b;
    b.first_row = pieces[at->piece].first_row;
    while (at->piece < last && pieces[at->piece].first_row == b.first_row && b.n < most) {
        const dp_piece *const piece = &pieces[at->piece];
        const size_t left = piece->n - at->row, n = left < most - b.n ? left : most - b.n;
        const dp_run run = dp_run_from(piece->run, f, at->row);
        dp_run_list(&run, f, &head->head->view, n, keys + b.n, values + b.n);
        b.n += n;
        at->row += n;
        if (n == left) *at = (cursor){.piece = at->piece + 1};
    }
    return b;
}

/* The segment of estimated cluster number i, which is `segment` or a later one. */
static uint32_t segment_of(const dp_head_step *head, uint32_t segment, size_t i)
{
    while (i >= head->estimates[segment + 1].first) segment++;
    return segment;
}

/* Lists the mean values of estimated clusters from number `first` on, as far as they are of the segment and fit a batch;
 * returns how many. */
static size_t list_means(const dp_head_step *head, uint32_t segment, size_t first, size_t last, size_t dim,
                         dp_row *values)
{
    const size_t end = head->estimates[segment + 1].first, left = (end < last ? end : last) - first;
    const size_t n = left < BATCH_ROWS ? left : BATCH_ROWS;
    const int8_t *const means = head->head->segments[segment].mean_values;
    for (size_t i = 0; i < n; i++) values[i] = dp_row_at(means + head->estimated[first + i] * dim);
    return n;
}

/* Lists the rows that a task reads first, as far as they are of use to the pass over keys and to that over values that
 * go before it; returns how many. */
static size_t list_start(dp_gather_task task, dp_row *keys, dp_row *values)
{
    if (!task.head) return 0;
    const dp_item *const item = &task.head->items[task.item];
    if (!item->estimated)
        return list_batch(&task.step->sequence->format, task.head, item->last, &(cursor){.piece = item->first}, keys,
                          values)
            .n;
    const size_t n =
        list_means(task.head, item->segment, item->first, item->last, task.step->sequence->format.value_dim, values);
    memcpy(keys, values, n * sizeof *keys);
    return n;
}

static void gather_pieces(dp_gather_task task, dp_gather_task next_task, float *partial, gather_scratch *scratch)
{
    const dp_step *const step = task.step;
    const dp_head_step *const h = task.head;
    const dp_item *const item = &h->items[task.item];
    const dp_row_format *const f = &step->sequence->format;
    const dp_kernels *const kernels = step->kernels;
    dp_row *const keys = scratch->keys, *const values = scratch->values;
    cursor at = {.piece = item->first};
    batch now = list_batch(f, h, item->last, &at, keys, values);
    while (now.n) {
        const batch next = list_batch(f, h, item->last, &at, keys + now.n, values + now.n);
        const size_t ahead = next.n ? next.n : list_start(next_task, keys + now.n, values + now.n);
        const size_t rows = step->rows - now.first_row;
        float *const state = partial + 2 * now.first_row;
        float *const sums = accumulators(step, partial) + now.first_row * f->value_dim;
        kernels->key_logits[f->type](h->q + now.first_row * f->key_dim, rows, f->key_dim, keys, now.n, ahead,
                                     step->sequence->scale, scratch->weights, BATCH_ROWS);
        for (size_t r = 0; r < rows; r++)
            weigh(step, state + 2 * r, sums + r * f->value_dim, scratch->weights + r * BATCH_ROWS, now.n);
        kernels->weighted_values[f->type](scratch->weights, BATCH_ROWS, rows, values, now.n, ahead, f->value_dim, sums);
        memmove(keys, keys + now.n, next.n * sizeof *keys);
        memmove(values, values + now.n, next.n * sizeof *values);
        now = next;
    }
}

/* Lists what follows an item's estimated clusters before number i, which are of `segment` and earlier ones: those from there
 * on, or the next task's rows. */
static size_t list_next(dp_gather_task task, dp_gather_task next_task, uint32_t segment, size_t i, dp_row *unused,
                        dp_row *values)
{
    const size_t last = task.head->items[task.item].last;
    if (i == last) return list_start(next_task, unused, values);
    return list_means(task.head, segment_of(task.head, segment, i), i, last, task.step->sequence->format.value_dim,
                      values);
}

/* Lists rows of a segment's slope from number `first` on. */
static size_t list_slope(const dp_row_format *f, const dp_segment *segment, size_t first, dp_row *rows)
{
    const size_t n = f->key_dim - first < BATCH_ROWS ? f->key_dim - first : BATCH_ROWS;
    for (size_t i = 0; i < n; i++) rows[i] = dp_row_at(segment->slope + (first + i) * f->value_dim);
    return n;
}

/* The first-order part of the estimates of a segment's clusters, all at once: a cluster's weighted mean value moves by
 * scale * (covariance of values and keys) (q - q0), and that covariance is the segment's mean one, the slope. Without it
 * the clusters' errors add up, as they point the same way. mass: [rows], of its estimated clusters of more than one token,
 * each times the slope of a soft cap at its logit. What follows number i is fetched meanwhile. */
static void add_slope(dp_gather_task task, dp_gather_task next_task, uint32_t number, size_t i, const float *mass,
                      gather_scratch *scratch, float *values)
{
    const dp_step *const step = task.step;
    const dp_segment *const segment = &task.head->head->segments[number];
    const dp_row_format *const f = &step->sequence->format;
    dp_row *const rows = scratch->keys;
    for (size_t first = 0, n; first < f->key_dim; first += n) {
        n = list_slope(f, segment, first, rows);
        const size_t ahead =
            first + n < f->key_dim ? 0 : list_next(task, next_task, number, i, scratch->values, rows + n);
        for (size_t r = 0; r < step->rows; r++)
            for (size_t j = 0; j < n; j++)
                scratch->weights[r * BATCH_ROWS + j] = mass[r] * step->sequence->scale *
                                                       task.head->offset[r * f->key_dim + first + j] *
                                                       segment->slope_step[first + j];
        step->kernels->weighted_means(scratch->weights, BATCH_ROWS, step->rows, rows, n, ahead, f->value_dim, values);
    }
}

/* How much of each cluster's mass moves with the query. */
static void list_moving(const dp_step *step, const dp_head_step *h, uint32_t number, const uint16_t *clusters, size_t n,
                        size_t row, float *moving)
{
    const size_t at = row * h->n_positions + h->estimates[number].position;
    const float *const slope = step->sequence->config.softcap > 0 ? h->cap_slope + at : NULL;
    if (row && !slope) return; /* the same for all rows */
    for (size_t i = 0; i < n; i++) {
        const float all = slope ? slope[clusters[i]] : 1.0f;
        moving[i] = dp_segment_size(&h->head->segments[number], clusters[i]) > 1 ? all : 0.0f;
    }
}

/* Weights of n estimated clusters of a segment; their masses are added to the partial's and, as far as they move, to
 * spread_mass [rows]. */
static void weigh_means(const dp_step *step, const dp_head_step *h, uint32_t number, const uint16_t *clusters, size_t n,
                        float *partial, float *spread_mass, gather_scratch *scratch)
{
    const float *const mean_step = h->head->segments[number].mean_step;
    for (size_t i = 0; i < n; i++) scratch->units[i] = mean_step[clusters[i]];
    for (size_t r = 0; r < step->rows; r++) {
        float sums[2] = {0};
        list_moving(step, h, number, clusters, n, r, scratch->moving);
        step->kernels->mean_weights(h->mass + r * h->n_positions + h->estimates[number].position, clusters, n, scratch->units,
                                    scratch->moving, scratch->weights + r * BATCH_ROWS, sums);
        partial[2 * r + 1] += sums[0];
        spread_mass[r] += sums[1];
    }
}

/* Whether a segment's clusters have so much of any row's mass that their slope is worth its bytes: SLOPE_SHARE of what each
 * segment would have if all had the same. Together those below have at most that share, and the slope is a correction. */
static bool is_heavy(const dp_step *step, const dp_head_step *h, const float *mass)
{
    const float share = SLOPE_SHARE / (float)h->head->n_segments;
    for (size_t r = 0; r < step->rows; r++)
        if (!(mass[r] <= share * h->total[r])) return true;
    return false;
}

static void gather_means(dp_gather_task task, dp_gather_task next_task, float *partial, gather_scratch *scratch)
{
    const dp_step *const step = task.step;
    const dp_head_step *const h = task.head;
    dp_item *const item = &h->items[task.item];
    const size_t dim = step->sequence->format.value_dim;
    float *const spread_mass = scratch->weights + step->rows * BATCH_ROWS, *const values = accumulators(step, partial);
    dp_row *const rows = scratch->values;
    memset(spread_mass, 0, step->rows * sizeof *spread_mass);
    for (size_t r = 0; r < step->rows; r++) partial[2 * r] = h->reference[r];
    uint32_t number = item->segment;
    for (size_t i = item->first, n; i < item->last; i += n) {
        number = segment_of(h, number, i);
        const dp_segment *const segment = &h->head->segments[number];
        n = list_means(h, number, i, item->last, dim, rows);
        weigh_means(step, h, number, h->estimated + i, n, partial, spread_mass, scratch);
        const bool ends = i + n == item->last || i + n == h->estimates[number + 1].first;
        const bool slope = ends && segment->has_slope && step->params.slope && is_heavy(step, h, spread_mass);
        const size_t ahead = slope ? list_slope(&step->sequence->format, segment, 0, rows + n)
                                   : list_next(task, next_task, number, i + n, scratch->keys, rows + n);
        step->kernels->weighted_means(scratch->weights, BATCH_ROWS, step->rows, rows, n, ahead, dim, values);
        if (slope) add_slope(task, next_task, number, i + n, spread_mass, scratch, values);
        item->n_slopes += slope;
        if (ends) memset(spread_mass, 0, step->rows * sizeof *spread_mass);
    }
    /* Where all masses underflowed there is nothing, and the reference must not pass for a logit that is there. */
    for (size_t r = 0; r < step->rows; r++) {
        if (!(partial[2 * r + 1] < FLT_MIN)) continue;
        partial[2 * r] = -INFINITY;
        partial[2 * r + 1] = 0;
        memset(accumulators(step, partial) + r * dim, 0, dim * sizeof *partial);
    }
}

void dp_gather_item(dp_gather_task task, dp_gather_task next, void *scratch)
{
    const dp_step *const step = task.step;
    float *const partial = task.head->partials + task.item * dp_partial_floats(step);
    for (size_t r = 0; r < step->rows; r++) {
        partial[2 * r] = -INFINITY;
        partial[2 * r + 1] = 0;
    }
    memset(accumulators(step, partial), 0, step->rows * step->sequence->format.value_dim * sizeof *partial);
    if (task.head->items[task.item].estimated)
        gather_means(task, next, partial, scratch);
    else
        gather_pieces(task, next, partial, scratch);
}
