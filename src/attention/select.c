/* Which clusters are refined, which contribute by their mean, which are dropped. No sort: a set "smallest with sum >=
 * need" is all clusters above a threshold, and the threshold is found by bisection with vector passes. */
#include <math.h>
#include <string.h>

#include "attention/step.h"

/* The largest threshold whose clusters sum to at least `need`, to 0.2 % of its value. Starts at the largest rank and
 * halves the interval of exponents [2^-span, 1] times that. 0 (all clusters) where even the lower end is too high;
 * Inf (none) where need <= 0. */
static float find_threshold(const dp_step *step, const float *rank, const float *value, size_t n, double need,
                            float span) {
    if (need <= 0) return INFINITY;
    const float top = step->kernels->max(rank, n);
    float low = -span, high = 0.0f; /* exponents, relative to the top */
    if (!(step->kernels->sum_at_least(rank, value, n, top * exp2f(low)) >= need)) return 0.0f;
    if (step->kernels->sum_at_least(rank, value, n, top) >= need) return top;
    while (high - low > 0.003f) {
        const float middle = 0.5f * (low + high);
        if (step->kernels->sum_at_least(rank, value, n, top * exp2f(middle)) >= need) low = middle;
        else high = middle;
    }
    return top * exp2f(low);
}

/* The threshold that at least n_wanted clusters reach. */
static float floor_threshold(const float *mass, size_t n, uint32_t n_wanted, float top) {
    float low = -60.0f, high = 0.0f;
    for (int i = 0; i < 16; i++) {
        const float middle = 0.5f * (low + high), t = top * exp2f(middle);
        size_t count = 0;
        for (size_t j = 0; j < n; j++) count += mass[j] >= t;
        if (count >= n_wanted) low = middle;
        else high = middle;
    }
    return top * exp2f(low);
}

/* Masses and expected errors of one query row; returns the mass of the clusters and of the exact tokens. */
static void measure(const dp_step *step, dp_head_step *h, size_t row, double *clusters, double *exact, double *errors) {
    float reference = -INFINITY;
    for (uint32_t t = h->first_task; t < h->first_task + h->n_tasks; t++)
        reference = fmaxf(reference, step->task_max[t * step->rows + row]);
    const size_t stride = dp_partial_floats(step);
    for (size_t i = 0; i < h->n_exact_items; i++)
        reference = fmaxf(reference, h->partials[i * stride + row * 2]);
    h->reference[row] = reference;

    *exact = 0;
    for (size_t i = 0; i < h->n_exact_items; i++) {
        const float *const p = h->partials + i * stride + row * 2;
        if (p[0] > -INFINITY || p[1] != p[1]) *exact += p[1] * exp((double)p[0] - reference);
    }
    *clusters = *errors = 0;
    const size_t at = row * h->n_positions;
    size_t position = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const size_t n = (size_t)segment->n_panels * DP_PANEL;
        float sums[2];
        step->kernels->cluster_mass(h->mass + at + position, segment->size, segment->spread, n, reference,
                                    h->variance[row], h->mass + at + position, h->error + at + position,
                                    h->rank + at + position, sums);
        *clusters += sums[0];
        *errors += sums[1];
        position += n;
    }
}

/* Marks what one query row wants. */
static void select_row(const dp_step *step, dp_head_step *h, size_t row) {
    const dp_attention_params *const p = &step->params;
    const size_t n = h->n_positions;
    float *const mass = h->mass + row * n, *const error = h->error + row * n, *const rank = h->rank + row * n;
    double clusters, exact, errors;
    measure(step, h, row, &clusters, &exact, &errors);
    if (!p->exact_mass) exact = 0;
    const double total = clusters + exact;
    uint8_t *const flags = h->flags;
    if (!isfinite(total)) { /* NaN or Inf somewhere: read everything, so that it shows as in dense attention */
        memset(flags, SELECT_ESTIMATE | SELECT_REFINE, n);
        return;
    }

    const float keep = p->p1 >= 1 ? 0.0f : find_threshold(step, mass, mass, n, p->p1 * total - exact, 60.0f);
    float refine;
    const float *key = mass;
    if (p->refine == DP_REFINE_TOP_P) {
        refine = p->p2 >= 1 ? 0.0f : find_threshold(step, mass, mass, n, p->p2 * total - exact, 60.0f);
    } else if (p->epsilon <= 0 || !isfinite(errors)) {
        refine = 0.0f;
    } else {
        double kept = 0;
        for (size_t i = 0; i < n; i++) { /* errors count only inside the set that is kept */
            const bool out = mass[i] < keep;
            error[i] = out ? 0.0f : error[i];
            rank[i] = out ? 0.0f : rank[i];
        }
        kept = step->kernels->sum_at_least(rank, error, n, 0.0f);
        const double budget = (double)p->epsilon * total;
        refine = find_threshold(step, rank, error, n, kept - budget * budget, 100.0f);
        key = rank;
    }
    const float floor = p->min_clusters ? floor_threshold(mass, n, p->min_clusters, step->kernels->max(mass, n)) : INFINITY;
    for (size_t i = 0; i < n; i++) {
        const unsigned kept = !(mass[i] < keep), refined = (kept & !(key[i] < refine)) | (mass[i] >= floor);
        flags[i] |= (uint8_t)(kept | refined << 1);
    }
}

/* A call may want a longer sink or window than the sequence keeps apart: clusters with such tokens are refined. */
static void force_ends(const dp_step *step, dp_head_step *h) {
    const uint64_t n = step->layer->n_tokens;
    const uint64_t sink = step->params.sink, window = step->params.window < n ? step->params.window : n;
    if (sink <= h->head->sink.n && window <= h->head->tail.n) return;
    uint8_t *flags = h->flags;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const bool touched = segment->first_token < sink || segment->first_token + segment->n_tokens > n - window;
        for (uint32_t c = 0; touched && c < segment->n_clusters; c++)
            for (uint32_t i = segment->offset[c]; i < segment->offset[c + 1]; i++) {
                const uint64_t token = segment->first_token + segment->token[i];
                if (token < sink || token >= n - window) flags[c] |= SELECT_ESTIMATE | SELECT_REFINE;
            }
        flags += segment->n_panels * DP_PANEL;
    }
}

static void sum_dropped(const dp_step *step, dp_head_step *h) {
    for (size_t r = 0; r < step->rows; r++) {
        double sum = 0;
        for (size_t i = 0; step->params.keep_dropped && i < h->n_positions; i++)
            if (!h->flags[i]) sum += h->mass[r * h->n_positions + i];
        h->dropped[r] = (float)sum;
    }
}

void dp_select(const dp_step *step, dp_head_step *h) {
    memset(h->flags, 0, h->n_positions);
    for (size_t r = 0; r < step->rows; r++) select_row(step, h, r);
    force_ends(step, h);
    sum_dropped(step, h);
    dp_pieces_selected(step, h);
}
