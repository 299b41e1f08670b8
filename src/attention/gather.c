/* What an item contributes: attention over rows, token by token, or over mean values with estimated masses. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "attention/step.h"

enum {
    BATCH_ROWS = 128, /* rows whose logits are taken together before their values: K and V of a batch stay in L1/L2 */
    MEANS_PER_BATCH = 256,
};

/* A partial is [rows][2] maximum and sum, then [rows][value_dim] values, relative to exp(maximum). */
static float *accumulators(const dp_step *step, float *partial)
{
    return partial + 2 * step->rows;
}

typedef struct gather_scratch {
    float *weights;  /* [rows][BATCH_ROWS or MEANS_PER_BATCH] */
    uint32_t *index; /* [MEANS_PER_BATCH] */
} gather_scratch;

static size_t weights_bytes(const dp_step *step)
{
    return step->rows * MEANS_PER_BATCH * sizeof(float);
}

size_t dp_gather_scratch_bytes(const dp_step *step)
{
    return weights_bytes(step) + MEANS_PER_BATCH * sizeof(uint32_t);
}

/* The next piece's keys and values are one run in a cluster; the hardware does not see across runs. */
static void prefetch(const dp_piece *piece, const dp_row_format *f)
{
    const size_t bytes = piece->n * (f->key_bytes + f->value_bytes);
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(piece->k + i, 0, 2);
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

static void gather_pieces(const dp_step *step, const dp_head_step *h, const dp_item *item, float *partial,
                          const gather_scratch *scratch)
{
    const dp_row_format *const f = &step->sequence->format;
    const dp_kernels *const kernels = step->kernels;
    float *const values = accumulators(step, partial);
    for (size_t i = item->first; i < item->last;) {
        const size_t first_row = h->pieces[i].first_row, rows = step->rows - first_row;
        size_t n = 0, last = i;
        while (last < item->last && h->pieces[last].first_row == first_row && n + h->pieces[last].n <= BATCH_ROWS) {
            const dp_piece *const piece = &h->pieces[last++];
            if (last < item->last) prefetch(&h->pieces[last], f);
            kernels->key_logits[f->type](h->q + first_row * f->key_dim, rows, f->key_dim, piece->k, f->key_dim, NULL,
                                         piece->n, step->sequence->scale, scratch->weights + n, BATCH_ROWS);
            n += piece->n;
        }
        for (size_t r = 0; r < rows; r++)
            weigh(step, partial + 2 * (first_row + r), values + (first_row + r) * f->value_dim,
                  scratch->weights + r * BATCH_ROWS, n);
        n = 0;
        for (; i < last; i++) {
            const dp_piece *const piece = &h->pieces[i];
            kernels->weighted_values[f->type](scratch->weights + n, BATCH_ROWS, rows, piece->v, f->value_dim, NULL,
                                              piece->n, f->value_dim, values + first_row * f->value_dim);
            n += piece->n;
        }
    }
}

static void gather_means(const dp_step *step, const dp_head_step *h, const dp_item *item, float *partial,
                         const gather_scratch *scratch)
{
    const size_t dim = step->sequence->format.value_dim;
    for (size_t r = 0; r < step->rows; r++) partial[2 * r] = h->reference[r];
    uint32_t segment = 0;
    size_t position = 0; /* of the segment's first cluster */
    for (size_t i = item->first; i < item->last;) {
        for (; segment < h->estimated[i].segment; segment++)
            position += (size_t)h->head->segments[segment].n_panels * DP_PANEL;
        size_t n = 0;
        for (; i < item->last && h->estimated[i].segment == segment && n < MEANS_PER_BATCH; i++)
            scratch->index[n++] = h->estimated[i].cluster;
        for (size_t r = 0; r < step->rows; r++) {
            const float *const mass = h->mass + r * h->n_positions + position;
            float *const weights = scratch->weights + r * MEANS_PER_BATCH;
            float sum = 0;
            for (size_t j = 0; j < n; j++) sum += weights[j] = mass[scratch->index[j]];
            partial[2 * r + 1] += sum;
        }
        step->kernels->weighted_values[DP_BF16](scratch->weights, MEANS_PER_BATCH, step->rows,
                                                h->head->segments[segment].mean_values, dim, scratch->index, n, dim,
                                                accumulators(step, partial));
    }
    /* Where all masses underflowed there is nothing, and the reference must not pass for a logit that is there. */
    for (size_t r = 0; r < step->rows; r++) {
        if (!(partial[2 * r + 1] < FLT_MIN)) continue;
        partial[2 * r] = -INFINITY;
        partial[2 * r + 1] = 0;
        memset(accumulators(step, partial) + r * dim, 0, dim * sizeof *partial);
    }
}

void dp_gather_item(const dp_step *step, const dp_head_step *h, size_t number, void *memory)
{
    const gather_scratch scratch = {.weights = memory, .index = (void *)((char *)memory + weights_bytes(step))};
    const dp_item *const item = &h->items[number];
    float *const partial = h->partials + number * dp_partial_floats(step);
    for (size_t r = 0; r < step->rows; r++) {
        partial[2 * r] = -INFINITY;
        partial[2 * r + 1] = 0;
    }
    memset(accumulators(step, partial), 0, step->rows * step->sequence->format.value_dim * sizeof *partial);
    if (item->estimated)
        gather_means(step, h, item, partial, &scratch);
    else
        gather_pieces(step, h, item, partial, &scratch);
}
