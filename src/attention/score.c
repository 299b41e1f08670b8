/* Stage 1: estimated logits of all clusters. */
#include <math.h>

#include "attention/lines.h"
#include "attention/step.h"

/* Panels per task: 1024 clusters of 128 dimensions are 256 KiB, long enough to stream, short enough to share out. */
enum { PANELS_PER_TASK = 64 };

static uint32_t tasks_of(const dp_segment *segment)
{
    return (segment->n_panels + PANELS_PER_TASK - 1) / PANELS_PER_TASK;
}

uint32_t dp_score_count_tasks(const dp_head *head)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < head->n_segments; s++) n += tasks_of(&head->segments[s]);
    return n;
}

void dp_score_plan(const dp_step *step, size_t kv_head)
{
    const dp_head_step *const h = &step->heads[kv_head];
    dp_score_task *task = step->tasks + h->first_task;
    uint32_t position = 0;
    for (uint32_t s = 0; s < h->head->n_segments; s++) {
        const uint32_t n_panels = h->head->segments[s].n_panels;
        for (uint32_t p = 0; p < n_panels; p += PANELS_PER_TASK)
            *task++ = (dp_score_task){.kv_head = (uint32_t)kv_head,
                                      .segment = s,
                                      .first_panel = p,
                                      .n_panels = n_panels - p < PANELS_PER_TASK ? n_panels - p : PANELS_PER_TASK,
                                      .position = position};
        position += n_panels * DP_PANEL;
    }
}

/* Estimated logits with a soft cap: the centroid's logit is capped, and its tokens' deviate from it by as much less as the cap is
 * flatter there. None of them is above the cap, and so no mean of them is. Clusters from
 * `first` of the segment and position `at` of the rows' arrays on. */
static float capped_logits(const dp_step *step, const dp_head_step *h, const dp_segment *segment, size_t first, size_t n,
                           size_t at, float base, float variance)
{
    const dp_kernels *const kernels = step->kernels;
    const float cap = step->sequence->config.softcap;
    const uint16_t *const size = segment->size + first, *const limit = segment->limit + first;
    float *const logits = h->mass + at, *const slope = h->cap_slope + at, spread[PANELS_PER_TASK * DP_PANEL];
    (void)kernels->cluster_logits(h->score + at, size, segment->spread + first, limit, n, base, step->sequence->scale,
                                  0.0f, logits);
    kernels->soft_cap(logits, n, 0.0f, cap);
    kernels->to_f32[DP_BF16](spread, segment->spread + first, n);
    for (size_t i = 0; i < n; i++) {
        const float t = logits[i] / cap;
        slope[i] = 1.0f - t * t;
        spread[i] *= slope[i] * slope[i];
    }
    kernels->from_f32[DP_BF16](h->spread + at, spread, n);
    const float top = kernels->cluster_logits(logits, size, h->spread + at, limit, n, 0.0f, 1.0f, variance, logits);
    for (size_t i = 0; i < n; i++) logits[i] = logits[i] > cap ? cap : logits[i];
    return top > cap ? cap : top;
}

void dp_score_run(const dp_step *step, const dp_score_task *task, float *task_max)
{
    const dp_head_step *const h = &step->heads[task->kv_head];
    const dp_segment *const segment = &h->head->segments[task->segment];
    const size_t dim = step->sequence->format.key_dim;
    const float scale = step->sequence->scale;
    const size_t first = (size_t)task->first_panel * DP_PANEL, n = (size_t)task->n_panels * DP_PANEL;
    const bool capped = step->sequence->config.softcap > 0;
    /* Short arrays, which the hardware's prefetcher is late for. */
    dp_prefetch(dp_lines_of(segment->mean_key, dim * sizeof *segment->mean_key));
    dp_prefetch(dp_lines_of(segment->size + first, n * sizeof *segment->size));
    dp_prefetch(dp_lines_of(segment->spread + first, n * sizeof *segment->spread));
    dp_prefetch(dp_lines_of(segment->limit + first, n * sizeof *segment->limit));
    step->kernels->score_panels(h->q, step->rows, dim, segment->panels + task->first_panel * dp_panel_bytes(dim),
                                task->n_panels, h->score + task->position + first, h->n_positions);
    for (size_t r = 0; r < step->rows; r++) {
        const float base = scale * step->kernels->dot(h->q + r * dim, segment->mean_key, dim);
        if (!task->first_panel) h->mean_logit[task->segment * step->rows + r] = base;
        const float variance = step->params.dispersion ? h->variance[r] : 0.0f;
        const size_t at = r * h->n_positions + task->position + first;
        task_max[r] = capped ? capped_logits(step, h, segment, first, n, at, base, variance)
                             : step->kernels->cluster_logits(h->score + at, segment->size + first,
                                                             segment->spread + first, segment->limit + first, n, base,
                                                             scale, variance, h->mass + at);
    }
}
