/* One softmax over the partial results of a query row, in the order of the items: the same bits whoever computed them. */
#include <math.h>
#include <string.h>

#include "attention/step.h"

void dp_merge_row(const dp_step *step, size_t kv_head, size_t row)
{
    const dp_head_step *const h = &step->heads[kv_head];
    const size_t dim = step->sequence->format.value_dim, stride = dp_partial_floats(step);
    const size_t query = row / step->sequence->group, in_group = row % step->sequence->group;
    const size_t head = query * step->sequence->config.n_query_heads + kv_head * step->sequence->group + in_group;
    float *const out = step->out + head * dim;

    /* The largest log-mass of a part, so that no part overflows or vanishes unless another outweighs it. */
    float top = -INFINITY;
    for (size_t i = 0; i < h->n_items; i++) {
        const float *const partial = h->partials + i * stride + 2 * row;
        if (partial[1] > 0) top = fmaxf(top, partial[0] + logf(partial[1]));
    }
    const float dropped = step->sparse ? h->dropped[row] : 0;
    if (dropped > 0) top = fmaxf(top, h->reference[row] + logf(dropped));
    const float shift = top > -INFINITY ? top : 0;

    double sum = 0, exact = 0;
    memset(out, 0, dim * sizeof *out);
    for (size_t i = 0; i < h->n_items; i++) {
        const float *const partial = h->partials + i * stride;
        const float factor = expf(partial[2 * row] - shift);
        const double part = (double)partial[2 * row + 1] * factor;
        sum += part;
        if (!h->items[i].estimated) exact += part;
        /* Added even where the factor is 0: a NaN value shows, as in dense attention. */
        step->kernels->axpy(out, partial + 2 * step->rows + row * dim, factor, dim);
    }
    step->exact_share[kv_head * step->rows + row] = sum > 0 ? exact / sum : 0;
    if (dropped > 0) sum += dropped * exp((double)h->reference[row] - shift);
    step->kernels->scale(out, (float)(1.0 / sum), dim);
    if (step->lse) step->lse[head] = (float)(log(sum) + shift);
}
