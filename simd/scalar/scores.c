/* Scalar clusters: queries against panels of 16 interleaved centroids, and weighted sums of mean values. */
#include "scalar.h"

static void score_panels(const float *q, size_t heads, size_t d, const int8_t *panels, size_t n_panels, float *out,
                         size_t out_stride)
{
    for (size_t p = 0; p < n_panels; p++) {
        const int8_t *panel = panels + p * dp_panel_bytes(d);
        const float *step = (const float *)(const void *)(panel + DP_PANEL * d);
        for (size_t h = 0; h < heads; h++) {
            float sum[4][DP_PANEL] = {{0}};
            for (size_t j = 0; j < d; j += 4) {
                const int8_t *quads = panel + j * DP_PANEL;
                for (size_t c = 0; c < DP_PANEL; c++)
                    for (size_t i = 0; i < 4; i++) sum[i][c] += q[h * d + j + i] * quads[4 * c + i];
            }
            for (size_t c = 0; c < DP_PANEL; c++)
                out[h * out_stride + p * DP_PANEL + c] = step[c] * ((sum[0][c] + sum[1][c]) + (sum[2][c] + sum[3][c]));
        }
    }
}

static void weighted_means(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                           size_t ahead, size_t d, float *acc)
{
    (void)ahead;
    for (size_t i = 0; i < n; i++)
        for (size_t h = 0; h < heads; h++)
            for (size_t j = 0; j < d; j++) acc[h * d + j] += w[h * w_stride + i] * ((const int8_t *)dp_row_address(rows[i]))[j];
}

void dp_scalar_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
    k->weighted_means = weighted_means;
}
