/* bench_look.c: what the true attention of a step looks like, so that readers can judge whether the inputs are lifelike. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1024 };

static int descending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* Sorts the logits of one query head. */
static void look_at_head(float *logits, size_t n, uint32_t sink, uint32_t window, double *tokens_90, double *sink_share,
                         double *window_share)
{
    double max = -INFINITY, total = 0, sinks = 0, recent = 0, sum = 0;
    for (size_t i = 0; i < n; i++)
        max = fmax(max, (double)logits[i]);
    for (size_t i = 0; i < n; i++) {
        const double mass = exp((double)logits[i] - max);
        total += mass;
        sinks += i < sink ? mass : 0;
        recent += i + window >= n ? mass : 0;
    }
    qsort(logits, n, sizeof(*logits), descending);
    size_t held = 0;
    while (held < n && sum < 0.9 * total)
        sum += exp((double)logits[held++] - max);
    *tokens_90 = (double)held;
    *sink_share += sinks / total;
    *window_share += recent / total;
}

bool bench_look_attention(const dp_sequence *sequence, uint32_t layer, const bench_shape *shape, const float *q,
                          uint32_t sink, uint32_t window, bench_attention *attention)
{
    const size_t dim = shape->dim, group = shape->n_query_heads / shape->n_kv_heads;
    const size_t n = (size_t)dp_sequence_tokens(sequence, layer);
    const float scale = 1 / sqrtf((float)dim);
    float *const keys = malloc(CHUNK * dim * sizeof(*keys)), *const logits = malloc(group * n * sizeof(*logits));
    bool done = keys && logits;
    *attention = (bench_attention){.n_heads = shape->n_query_heads};
    for (uint32_t h = 0; done && h < shape->n_kv_heads; h++) {
        for (size_t first = 0; done && first < n; first += CHUNK) {
            const size_t count = n - first < CHUNK ? n - first : CHUNK;
            done = dp_sequence_read(sequence, layer, h, first, count, keys, NULL) == DP_OK;
#pragma omp parallel for
            for (size_t t = 0; t < count; t++)
                for (size_t g = 0; g < group; g++) {
                    const float *const query = q + (h * group + g) * dim, *const key = keys + t * dim;
                    float sum = 0;
                    for (size_t j = 0; j < dim; j++)
                        sum += query[j] * key[j];
                    logits[g * n + first + t] = scale * sum;
                }
        }
        double sinks = 0, recent = 0;
#pragma omp parallel for reduction(+ : sinks, recent)
        for (size_t g = 0; g < group; g++)
            look_at_head(logits + g * n, n, sink, window, &attention->tokens_90[h * group + g], &sinks, &recent);
        attention->sink_share += sinks / shape->n_query_heads;
        attention->window_share += recent / shape->n_query_heads;
    }
    free(keys);
    free(logits);
    return done;
}
