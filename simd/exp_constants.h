/* Constants of the vector exponential: exp(x) = 2^n (1 + r p(r)) with n = round(x / ln 2), r = x - n ln 2.
 * p is the minimax polynomial of (exp(r) - 1) / r on |r| <= ln 2 / 2 for the relative error of exp: 2e-8 after rounding
 * of the coefficients; with the rounding of the evaluation exp is good to 2 ulp, and expm1 = (2^n - 1) + 2^n r p(r) is
 * good to a few ulp for small arguments too. */
#ifndef DP_SIMD_EXP_CONSTANTS_H
#define DP_SIMD_EXP_CONSTANTS_H

#define DP_LOG2_E 0x1.715476p+0f
#define DP_LN2_HIGH 0x1.62e43p-1f
#define DP_LN2_LOW -0x1.05c61p-29f

#define DP_EXP_C0 0x1p+0f
#define DP_EXP_C1 0x1.fffffcp-2f
#define DP_EXP_C2 0x1.555418p-3f
#define DP_EXP_C3 0x1.555824p-5f
#define DP_EXP_C4 0x1.1267d8p-7f
#define DP_EXP_C5 0x1.6ae6ep-10f

#define DP_EXP_LOWEST -87.33654f /* just above ln 2^-126: smaller arguments give 0, so that no denormal appears */
#define DP_EXP_LARGEST 89.0f     /* larger ones overflow anyway; keeps Inf out of the reduction */

#endif
