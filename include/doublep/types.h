/* doublep/types.h: element types, instruction sets and status codes shared by all headers. */
#ifndef DOUBLEP_TYPES_H
#define DOUBLEP_TYPES_H

#ifdef __cplusplus
extern "C" {
#endif

/* Element type of keys and values. Values are pinned: they appear in files. */
typedef enum dp_type {
    DP_F32 = 0,  /* IEEE binary32 */
    DP_F16 = 1,  /* IEEE binary16 */
    DP_BF16 = 2, /* bfloat16: the upper half of a binary32 */
    DP_INT8 = 3, /* int8 with a step for each row: n int8, then the step, a float (n + 4 bytes, 4-byte aligned); an element is
                    step * int8, step = largest magnitude of the row / 127 */
    DP_TYPE_COUNT = 4
} dp_type;

/* Instruction set of the kernels. */
typedef enum dp_isa {
    DP_ISA_AUTO = 0,   /* the best that the machine has; the environment variable DOUBLEP_ISA overrides it */
    DP_ISA_SCALAR = 1, /* portable C */
    DP_ISA_AVX2 = 2,   /* AVX2, FMA, F16C */
    DP_ISA_AVX512 = 3, /* AVX-512 F, BW, DQ, VL; BF16 instructions where present */
    DP_ISA_NEON = 4,   /* AArch64 Advanced SIMD; BF16 and dot product instructions where present */
    DP_ISA_COUNT = 5
} dp_isa;

/* What a call returns: DP_OK or a negative code. Values are pinned. */
typedef enum dp_status {
    DP_OK = 0,
    DP_ERR_INVALID = -1,     /* an argument or a setting is out of range; nothing changed */
    DP_ERR_NO_MEMORY = -2,   /* memory could not be had; the object is as it was before the call */
    DP_ERR_UNSUPPORTED = -3, /* this machine or this build lacks what was asked for (an ISA) */
    DP_ERR_SYSTEM = -4,      /* a call to the system, hwloc or oneDNN failed */
    DP_ERR_DAMAGED = -5,     /* a file is not what it should be: damaged, cut short, or of another kind */
} dp_status;

#ifdef __cplusplus
}
#endif

#endif
