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
    uint32_t positions[2 * BATCH_ROWS];
    float weights[]; /* [rows][BATCH_ROWS] */
} gather_scratch;

size_t dp_gather_scratch_bytes(const dp_step *step)
{
    return sizeof(gather_scratch) + step->rows * BATCH_ROWS * sizeof(float);
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

static batch list_batch(const dp_row_format *f, const dp_piece *pieces, size_t last, cursor *at, const void **keys,
                        const void **values)
{
    const size_t fitting = BATCH_BYTES / (f->key_bytes + f->value_bytes);
    const size_t most = fitting < BATCH_ROWS ? fitting : BATCH_ROWS;
    batch b = {0};
    if (at->piece == last) return b;
    b.first_row = pieces[at->piece].first_row;
    while (at->piece < last && pieces[at->piece].first_row == b.first_row && b.n < most) {
        const dp_piece *const piece = &pieces[at->piece];
        const size_t left = piece->n - at->row, n = left < most - b.n ? left : most - b.n;
        const char *k = piece->k + at->row * f->key_bytes, *v = piece->v + at->row * f->value_bytes;
        for (size_t i = 0; i < n; i++, k += f->key_bytes, v += f->value_bytes) {
            keys[b.n + i] = k;
            values[b.n + i] = v;
        }
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
        return list_batch(&task.step->sequence->format, task.head->pieces, item->last, &(cursor){.piece = item->first},
                          keys, values)
            .n;
    size_t n = 0;
    for (size_t i = item->first; i < item->last && n < BATCH_ROWS; i++, n++) {
        const dp_estimated *const estimated = &task.head->estimated[i];
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
    batch now = list_batch(f, h->pieces, item->last, &at, keys, values);
    while (now.n) {
        const batch next = list_batch(f, h->pieces, item->last, &at, keys + now.n, values + now.n);
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

static void gather_means(dp_gather_task task, dp_gather_task next_task, float *partial, gather_scratch *scratch)
{
    const dp_step *const step = task.step;
    const dp_head_step *const h = task.head;
    const dp_item *const item = &h->items[task.item];
    const size_t dim = step->sequence->format.value_dim;
    for (size_t r = 0; r < step->rows; r++) partial[2 * r] = h->reference[r];
    uint32_t segment = 0, position = 0; /* of the segment's first cluster */
    size_t n = 0;                       /* listed */
    for (size_t i = item->first; i < item->last || n;) {
        for (; i < item->last && n < 2 * BATCH_ROWS; i++, n++) {
            const dp_estimated *const estimated = &h->estimated[i];
            for (; segment < estimated->segment; segment++) position += h->head->segments[segment].n_panels * DP_PANEL;
            scratch->values[n] = h->head->segments[segment].mean_values + (size_t)estimated->cluster * dim;
            scratch->positions[n] = position + estimated->cluster;
        }
        const size_t now = n < BATCH_ROWS ? n : BATCH_ROWS;
        for (size_t r = 0; r < step->rows; r++) {
            const float *const mass = h->mass + r * h->n_positions;
            float *const weights = scratch->weights + r * BATCH_ROWS;
            float sum = 0;
            for (size_t j = 0; j < now; j++) sum += weights[j] = mass[scratch->positions[j]];
            partial[2 * r + 1] += sum;
        }
        n -= now;
        const size_t ahead = n ? n : list_start(next_task, scratch->values + now, scratch->keys);
        step->kernels->weighted_values[DP_BF16](scratch->weights, BATCH_ROWS, step->rows, scratch->values, now, ahead,
                                                dim, accumulators(step, partial));
        memmove(scratch->values, scratch->values + now, n * sizeof *scratch->values);
        memmove(scratch->positions, scratch->positions + now, n * sizeof *scratch->positions);
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
