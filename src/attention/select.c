/* Which clusters are refined, which contribute by their mean, which are dropped. No sort: a set "smallest with sum >=
 * need" is all clusters above a threshold, and the threshold is found by bisection with vector passes. */
#include <math.h>
#include <string.h>

#include "attention/lines.h"
#include "attention/step.h"

/* What a threshold is looked for among: ranks, and what is summed of those above it. `left_*` are work memory, [n], where value
 * may be left_value itself and then is lost. */
typedef struct ranking {
    const float *rank, *value;
    size_t n;
    float *left_rank, *left_value;
} ranking;

/* The largest threshold whose clusters sum to at least `need`, to 0.2 % of its value: halves an interval of exponents below
 * the largest rank. Its lower end, `floor`, is surely low enough, and decides on more than half of the clusters: the
 * passes are over those that are left (over all, from a lower end that was only surely too low, they took twice the
 * time). 0 (all clusters) where the floor is not above 0; Inf (none) where need <= 0. */
static float find_threshold(const dp_step *step, ranking r, double need, float floor)
{
    const dp_kernels *const kernels = step->kernels;
    if (need <= 0) return INFINITY;
    if (!(floor > 0)) return 0.0f;
    const bool same = r.value == r.rank;
    const size_t n = kernels->list_at_least(r.rank, same ? NULL : r.value, r.n, floor, r.left_rank, r.left_value);
    const float *const rank = r.left_rank, *const value = same ? rank : r.left_value;
    const float top = kernels->max(rank, n);
    if (!(floor < top && top < INFINITY)) return floor;
    if (kernels->sum_at_least(rank, value, n, top) >= need) return top;
    float low = log2f(floor) - log2f(top), high = 0.0f; /* exponents, relative to the top; the quotient may be 0 */
    while (high - low > 0.003f) {
        const float middle = 0.5f * (low + high);
        if (kernels->sum_at_least(rank, value, n, top * exp2f(middle)) >= need)
            low = middle;
        else
            high = middle;
    }
    return top * exp2f(low);
}

/* Likewise of masses by their size, which sum to `all`: those below a threshold are at most n times that. */
static float find_mass(const dp_step *step, dp_head_step *h, size_t row, double all, double need)
{
    const float *const mass = h->mass + row * h->n_positions;
    return find_threshold(step, (ranking){mass, mass, h->n_positions, h->rank, NULL}, need,
                          (float)((all - need) / (double)h->n_positions));
}

/* The largest threshold that at least n_wanted clusters reach, or all that have any mass where those are fewer. Masses
 * are not negative, so their bits are in their order. */
static float floor_threshold(const float *mass, size_t n, uint32_t n_wanted, float top)
{
    if (!(top > 0)) return INFINITY;
    uint32_t low = 1, high;
    memcpy(&high, &top, sizeof high);
    while (low < high) {
        const uint32_t middle = low + (high - low + 1) / 2;
        float threshold;
        memcpy(&threshold, &middle, sizeof threshold);
        size_t count = 0;
        for (size_t i = 0; i < n; i++) count += mass[i] >= threshold;
        if (count >= n_wanted)
            low = middle;
        else
            high = middle - 1;
    }
    float found;
    memcpy(&found, &low, sizeof found);
    return found;
}

/* Fetches what selection reads of a segment: arrays too short for the hardware's prefetcher. */
static void prefetch_clusters(const dp_segment *segment, size_t key_dim)
{
    const size_t n = segment->n_clusters;
    dp_prefetch(dp_lines_of(segment->size, n * sizeof *segment->size));
    dp_prefetch(dp_lines_of(segment->spread, n * sizeof *segment->spread));
    dp_prefetch(dp_lines_of(segment->offset, (n + 1) * sizeof *segment->offset));
    dp_prefetch(dp_lines_of(segment->mean_key, key_dim * sizeof *segment->mean_key));
}

/* Masses and expected errors of one query row; returns the mass of the clusters and of the exact tokens. */
static void measure(const dp_step *step, dp_head_step *h, size_t row, double *clusters, double *exact)
{
    float reference = -INFINITY;
    for (uint32_t t = h->first_task; t < h->first_task + h->n_tasks; t++)
        reference = fmaxf(reference, step->task_max[t * step->rows + row]);
    const size_t stride = dp_partial_floats(step);
    for (size_t i = 0; i < h->n_exact_items; i++) reference = fmaxf(reference, h->partials[i * stride + row * 2]);
    h->reference[row] = reference;

    *exact = 0;
    for (size_t i = 0; i < h->n_exact_items; i++) {
        const float *const p = h->partials + i * stride + row * 2;
        if (p[0] > -INFINITY || p[1] != p[1]) *exact += p[1] * exp((double)p[0] - reference);
    }
    *clusters = 0;
    const bool capped = step->sequence->config.softcap > 0;
    const size_t at = row * h->n_positions;
    size_t position = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const size_t n = (size_t)segment->n_panels * DP_PANEL;
        if (row == 0 && s + 1 < h->head->n_segments) prefetch_clusters(segment + 1, step->sequence->format.key_dim);
        const uint16_t *const spread = capped ? h->spread + at + position : segment->spread;
        *clusters += step->kernels->cluster_mass(h->mass + at + position, segment->size, spread, n, reference,
                                                 h->variance[row], h->mass + at + position, h->error + position);
        position += n;
    }
}

static void mark(dp_head_step *h, const float *rank, float threshold, uint8_t flags)
{
    for (size_t i = 0; i < h->n_positions; i++) h->flags[i] |= rank[i] < threshold ? 0 : flags;
}

/* Marks what one query row wants, and adds its expected errors to those of the others. False where the masses are not
 * finite. */
static bool select_row(const dp_step *step, dp_head_step *h, size_t row)
{
    const dp_attention_params *const p = &step->params;
    const size_t n = h->n_positions;
    const float *const mass = h->mass + row * n;
    double clusters, exact;
    measure(step, h, row, &clusters, &exact);
    if (!p->exact_mass) exact = 0;
    const double total = clusters + exact;
    h->total[row] = (float)total;
    if (!isfinite(total)) return false;

    const float keep = p->p1 >= 1 ? 0.0f : find_mass(step, h, row, clusters, p->p1 * total - exact);
    if (p->refine == DP_REFINE_TOP_P) {
        const float refine = p->p2 >= 1 ? 0.0f : find_mass(step, h, row, clusters, p->p2 * total - exact);
        mark(h, mass, keep, SELECT_ESTIMATE);
        mark(h, mass, refine, SELECT_ESTIMATE | SELECT_REFINE);
    } else {
        const double budget = fmax((double)p->epsilon, 1e-6) * total;
        step->kernels->keep_clusters(mass, h->error, n, keep, (float)fmin(1 / (budget * budget), 1e30), h->joint,
                                     h->flags);
    }
    if (p->min_clusters)
        mark(h, mass, floor_threshold(mass, n, p->min_clusters, step->kernels->max(mass, n)),
             SELECT_ESTIMATE | SELECT_REFINE);
    return true;
}

/* What a token costs that is looked at, in rows: a look at the signs leads to the codes, or to a part of the keys that is about as
 * long, one time in four. */
static float look_cost(const dp_row_format *f)
{
    const float signs = (float)dp_sign_bytes(f) / DP_SIGN_GROUP, codes = (float)dp_code_bytes(f) / DP_CODE_GROUP;
    return (signs + 0.25f * codes) / (float)(f->key_bytes + f->value_bytes);
}

/* The error budget, for the query rows together: a row that is read serves them all, so clusters are refined in order
 * of the sum of the rows' errors, each in units of its budget, by cost, until that sum is one per row. One at a
 * time, the union of what each row wants reads half as much again at the same error. */
static void spend_budget(const dp_step *step, dp_head_step *h)
{
    const size_t n = h->n_positions;
    if (!(step->params.epsilon > 0)) { /* all that is kept */
        for (size_t i = 0; i < n; i++) h->flags[i] |= h->flags[i] ? SELECT_ESTIMATE | SELECT_REFINE : 0;
        return;
    }
    /* Cost in rows: 1 for a single token, read + look * tokens for more, of which about one is read where codes are looked at.
     * What exceeds the whole budget is read anyway; as it is, it would drown the rest in rounding. */
    const bool codes = step->sequence->format.has_codes;
    const float read = codes ? 1.0f : 0.0f, look = codes ? look_cost(&step->sequence->format) : 1.0f;
    const float most = 2.0f * (float)step->rows;
    size_t position = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const size_t n_segment = (size_t)segment->n_panels * DP_PANEL;
        step->kernels->rank_clusters(h->joint + position, segment->size, n_segment, read, look, most,
                                     h->rank + position);
        position += n_segment;
    }
    const double all = step->kernels->sum_at_least(h->rank, h->joint, n, 0.0f), budget = (double)step->rows;
    const double cost = (double)n + look * (double)h->head->clustered; /* of all, at most */
    const ranking by_rank = {h->rank, h->joint, n, h->error, h->joint};
    const float refine = find_threshold(step, by_rank, all - budget, (float)(budget / cost));
    const uint8_t one = SELECT_ESTIMATE | SELECT_REFINE, several = codes ? SELECT_LOOK : one;
    position = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const dp_segment *const segment = &h->head->segments[s];
        const size_t n_segment = (size_t)segment->n_panels * DP_PANEL;
        step->kernels->mark_ranked(h->rank + position, segment->size, n_segment, refine, one, several,
                                   h->flags + position);
        position += n_segment;
    }
}

/* A call may want a longer sink or window than the sequence keeps apart: clusters with such tokens are refined. */
static void force_ends(const dp_step *step, dp_head_step *h)
{
    const uint64_t n = step->layer->n_tokens;
    const uint64_t sink = step->params.sink;
    uint64_t window = step->params.window ? step->params.window + (uint64_t)step->n_queries - 1 : 0; /* of each query */
    if (window > n) window = n;
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

void dp_select(const dp_step *step, dp_head_step *h)
{
    bool finite = true;
    memset(h->flags, 0, h->n_positions);
    memset(h->joint, 0, h->n_positions * sizeof *h->joint);
    for (size_t r = 0; r < step->rows; r++) finite &= select_row(step, h, r);
    if (!finite) /* NaN or Inf somewhere: read everything, so that it shows as in dense attention */
        memset(h->flags, SELECT_ESTIMATE | SELECT_REFINE, h->n_positions);
    else if (step->params.refine == DP_REFINE_BUDGET)
        spend_budget(step, h);
    force_ends(step, h);
    dp_scan_plan(step, h);
}

void dp_sum_dropped(const dp_step *step, dp_head_step *h)
{
    for (size_t r = 0; r < step->rows; r++) {
        double sum = 0;
        for (size_t i = 0; step->params.keep_dropped && i < h->n_positions; i++)
            if (!(h->flags[i] & (SELECT_ESTIMATE | SELECT_REFINE))) sum += h->mass[r * h->n_positions + i];
        h->dropped[r] = (float)sum;
    }
}
