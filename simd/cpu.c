/* What the processor and the operating system support: CPUID, and XCR0 for the registers that the system saves;
 * on AArch64 what Linux tells. */
#include "kernels.h"

#if defined(__x86_64__)

#include <cpuid.h>

static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int has_all(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

unsigned dp_cpu_features(void)
{
    enum { /* bits of CPUID leaves 1 and 7, of XCR0 */
        LEAF1_ECX = 1 << 12 /* FMA */ | 1 << 27 /* OSXSAVE */ | 1 << 28 /* AVX */ | 1 << 29 /* F16C */,
        LEAF7_EBX_AVX2 = 1 << 5,
        LEAF7_EBX_AVX512 = 1 << 16 /* F */ | 1 << 17 /* DQ */ | 1 << 30 /* BW */,
        LEAF7_ECX_VNNI = 1 << 11,
        LEAF7_1_EAX_BF16 = 1 << 5,
        XCR0_YMM = 1 << 1 | 1 << 2,
        XCR0_ZMM = XCR0_YMM | 1 << 5 | 1 << 6 | 1 << 7,
    };
    const uint32_t leaf7_ebx_vl = 1u << 31;

    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has_all(ecx, LEAF1_ECX))
        return 0;
    const uint64_t xcr0 = read_xcr0(); /* OSXSAVE is set: the instruction exists */
    if (!has_all((uint32_t)xcr0, XCR0_YMM) || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
        !has_all(ebx, LEAF7_EBX_AVX2))
        return 0;
    unsigned features = DP_CPU_AVX2;
    if (has_all((uint32_t)xcr0, XCR0_ZMM) && has_all(ebx, LEAF7_EBX_AVX512 | leaf7_ebx_vl)) {
        features |= DP_CPU_AVX512 | (has_all(ecx, LEAF7_ECX_VNNI) ? DP_CPU_AVX512_VNNI : 0);
        if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && has_all(eax, LEAF7_1_EAX_BF16))
            features |= DP_CPU_AVX512_BF16;
    }
    return features;
}

#elif defined(__aarch64__) && defined(__linux__)

#include <asm/hwcap.h>
#include <sys/auxv.h>

unsigned dp_cpu_features(void)
{
    if (!(getauxval(AT_HWCAP) & HWCAP_ASIMD))
        return 0;
    unsigned features = DP_CPU_NEON;
    if (getauxval(AT_HWCAP2) & HWCAP2_BF16)
        features |= DP_CPU_NEON_BF16;
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
        features |= DP_CPU_NEON_DOTPROD;
    return features;
}

#else

unsigned dp_cpu_features(void)
{
    return 0;
}

#endif
