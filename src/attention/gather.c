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

/* A partial is [rows][2] maximum and sum, then [rows][value_dim] values, relative to exp(maximum). */
static float *accumulators(const dp_step *step, float *partial)
{
    return partial + 2 * step->rows;
}

/* A thread's memory. The lists hold the batch at work, then the one after it, whose rows are fetched meanwhile. */
typedef struct gather_scratch {
    const void *keys[2 * BATCH_ROWS], *values[2 * BATCH_ROWS];
    uint32_t positions[BATCH_ROWS];
    float units[BATCH_ROWS], several[BATCH_ROWS]; /* of mean values; 1 for clusters of more than one token, or 0 */
    float weights[];                              /* [rows][BATCH_ROWS], then a mass per row */
} gather_scratch;

size_t dp_gather_scratch_bytes(const dp_step *step)
{
    return sizeof(gather_scratch) + step->rows * (BATCH_ROWS + 1) * sizeof(float);
}

/* Brings the running maximum of a row up to the batch's and turns its logits into weights. */
static void weigh(const dp_step *step, float *state, float *values, float *logits, size_t n)
{
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

static batch list_batch(const dp_row_format *f, const dp_head_step *head, size_t last, cursor *at, const void **keys,
                        const void **values)
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

/* Lists the rows that a task reads first, as far as they are of use to the pass over keys and to that over values that
 * go before it; returns how many. */
static size_t list_start(dp_gather_task task, const void **keys, const void **values)
{
    if (!task.head) return 0;
    const dp_item *const item = &task.head->items[task.item];
    if (!item->estimated)
        return list_batch(&task.step->sequence->format, task.head, item->last, &(cursor){.piece = item->first}, keys,
                          values)
            .n;
    size_t n = 0;
    for (size_t i = item->first; i < item->last && n < BATCH_ROWS; i++, n++) {
        const dp_cluster_ref *const estimated = &task.head->estimated[i];
        const dp_segment *const segment = &task.head->head->segments[estimated->segment];
        keys[n] = values[n] = segment->mean_values + (size_t)estimated->cluster * task.step->sequence->format.value_dim;
    }
    return n;
}

static void gather_pieces(dp_gather_task task, dp_gather_task next_task, float *partial, gather_scratch *scratch)
{
    const dp_step *const step = task.step;
    const dp_head_step *const h = task.head;
    const dp_item *const item = &h->items[task.item];
    const dp_row_format *const f = &step->sequence->format;
    const dp_kernels *const kernels = step->kernels;
    const void **const keys = scratch->keys, **const values = scratch->values;
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

/* The first-order part of the estimates of a segment's clusters, all at once: a cluster's weighted mean value moves by
 * scale * (covariance of values and keys) (q - q0), and that covariance is the segment's mean one, the slope. mass: [rows],
 * of its estimated clusters of more than one token. Without it the clusters' errors add up, as they point the same way. */
static void add_slope(const dp_step *step, const dp_head_step *h, const dp_segment *segment, float *mass,
                      gather_scratch *scratch, float *values)
{
    const dp_row_format *const f = &step->sequence->format;
    for (size_t first = 0; segment->has_slope && step->params.slope && first < f->key_dim; first += BATCH_ROWS) {
        const size_t n = f->key_dim - first < BATCH_ROWS ? f->key_dim - first : BATCH_ROWS;
        for (size_t i = 0; i < n; i++) scratch->values[i] = segment->slope + (first + i) * f->value_dim;
        for (size_t r = 0; r < step->rows; r++)
            for (size_t i = 0; i < n; i++)
                scratch->weights[r * BATCH_ROWS + i] = mass[r] * step->sequence->scale *
                                                       h->offset[r * f->key_dim + first + i] *
                                                       segment->slope_step[first + i];
        step->kernels->weighted_means(scratch->weights, BATCH_ROWS, step->rows, scratch->values, n, f->value_dim, values);
    }
    memset(mass, 0, step->rows * sizeof *mass);
}

static void gather_means(dp_gather_task task, float *partial, gather_scratch *scratch)
{
    const dp_step *const step = task.step;
    const dp_head_step *const h = task.head;
    const dp_item *const item = &h->items[task.item];
    const size_t dim = step->sequence->format.value_dim;
    float *const spread_mass = scratch->weights + step->rows * BATCH_ROWS, *const values = accumulators(step, partial);
    memset(spread_mass, 0, step->rows * sizeof *spread_mass);
    for (size_t r = 0; r < step->rows; r++) partial[2 * r] = h->reference[r];
    uint32_t number = h->estimated[item->first].segment;
    size_t position = 0; /* of the segment's first cluster */
    for (uint32_t s = 0; s < number; s++) position += (size_t)h->head->segments[s].n_panels * DP_PANEL;
    for (size_t i = item->first; i < item->last;) {
        const dp_segment *const segment = &h->head->segments[number];
        size_t n = 0;
        for (; i < item->last && h->estimated[i].segment == number && n < BATCH_ROWS; i++) {
            const uint32_t cluster = h->estimated[i].cluster;
            scratch->values[n] = segment->mean_values + (size_t)cluster * dim;
            __builtin_prefetch(scratch->values[n], 0, 2);
            scratch->units[n] = segment->mean_step[cluster];
            scratch->several[n] = dp_segment_size(segment, cluster) > 1 ? 1.0f : 0.0f;
            scratch->positions[n++] = cluster;
        }
        for (size_t r = 0; r < step->rows; r++) {
            const float *const mass = h->mass + r * h->n_positions + position;
            float *const weights = scratch->weights + r * BATCH_ROWS;
            float sum = 0, spread = 0;
            for (size_t j = 0; j < n; j++) {
                const float m = mass[scratch->positions[j]];
                weights[j] = m * scratch->units[j];
                sum += m;
                spread += m * scratch->several[j];
            }
            partial[2 * r + 1] += sum;
            spread_mass[r] += spread;
        }
        step->kernels->weighted_means(scratch->weights, BATCH_ROWS, step->rows, scratch->values, n, dim, values);
        const uint32_t next = i < item->last ? h->estimated[i].segment : UINT32_MAX;
        if (next == number) continue;
        add_slope(step, h, segment, spread_mass, scratch, values);
        for (; i < item->last && number < next; number++)
            position += (size_t)h->head->segments[number].n_panels * DP_PANEL;
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
        gather_means(task, partial, scratch);
    else
        gather_pieces(task, next, partial, scratch);
}
