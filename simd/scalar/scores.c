/* Scalar centroid scores: queries against panels of 16 interleaved centroids. */
#include "scalar.h"

static void score_panels(const float *q, size_t heads, size_t d, const uint16_t *panels, size_t n_panels, float *out,
                         size_t out_stride)
{
    for (size_t p = 0; p < n_panels; p++) {
        const uint16_t *panel = panels + p * DP_PANEL * d;
        for (size_t h = 0; h < heads; h++) {
            float even[DP_PANEL] = {0}, odd[DP_PANEL] = {0};
            for (size_t j = 0; j < d; j += 2) {
                const uint16_t *pairs = panel + j * DP_PANEL;
                for (size_t c = 0; c < DP_PANEL; c++) {
                    even[c] += q[h * d + j] * dp_f32_from_bf16(pairs[2 * c]);
                    odd[c] += q[h * d + j + 1] * dp_f32_from_bf16(pairs[2 * c + 1]);
                }
            }
            for (size_t c = 0; c < DP_PANEL; c++)
                out[h * out_stride + p * DP_PANEL + c] = even[c] + odd[c];
        }
    }
}

void dp_scalar_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
}
