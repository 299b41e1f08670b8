/* How kernels are put together: from inlined parts that get constants, in loops that unroll into registers. */
#ifndef DP_SIMD_INLINE_H
#define DP_SIMD_INLINE_H

#define DP_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define DP_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DP_UNROLL _Pragma("GCC unroll 32")
#endif

#endif
