/* The kernel table of an ISA: the scalar form, then the ISA's own kernels over it. */
#include "kernels.h"

int dp_kernels_init(dp_kernels *k, dp_isa isa, unsigned features)
{
    (void)features; /* not looked at on architectures that have the scalar form only */
    switch (isa) {
    case DP_ISA_SCALAR:
        dp_kernels_init_scalar(k);
        return 0;
#ifdef DP_BUILD_AVX2
    case DP_ISA_AVX2:
        if (!(features & DP_CPU_AVX2))
            return -1;
        dp_kernels_init_scalar(k);
        dp_kernels_init_avx2(k);
        return 0;
#endif
#ifdef DP_BUILD_AVX512
    case DP_ISA_AVX512:
        if (!(features & DP_CPU_AVX512))
            return -1;
        dp_kernels_init_scalar(k);
        dp_kernels_init_avx512(k);
#ifdef DP_BUILD_AVX512_VNNI
        if (features & DP_CPU_AVX512_VNNI)
            dp_kernels_init_avx512_vnni(k);
#endif
#ifdef DP_BUILD_AVX512_BF16
        if (features & DP_CPU_AVX512_BF16)
            dp_kernels_init_avx512_bf16(k);
#endif
        return 0;
#endif
#ifdef DP_BUILD_NEON
    case DP_ISA_NEON:
        if (!(features & DP_CPU_NEON))
            return -1;
        dp_kernels_init_scalar(k);
        dp_kernels_init_neon(k);
#ifdef DP_BUILD_NEON_BF16
        if (features & DP_CPU_NEON_BF16)
            dp_kernels_init_neon_bf16(k);
#endif
#ifdef DP_BUILD_NEON_DOTPROD
        if (features & DP_CPU_NEON_DOTPROD)
            dp_kernels_init_neon_dotprod(k);
#endif
        return 0;
#endif
    default:
        return -1;
    }
}
