/* What the kernel tests share: the kernel table under test, random numbers, guarded buffers, comparison, and the
 * description of the running case, which every failure prints (a crash too).
 *
 * A buffer ends `shift` bytes before an inaccessible page. What lies around it is filled with 0xff bytes, which are NaN
 * in every element type: reading outside shows in the result or crashes, writing outside is found by release_buffers().
 */
#ifndef TESTS_KERNELS_HARNESS_H
#define TESTS_KERNELS_HARNESS_H

#include <check.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

extern dp_kernels kernels; /* of the ISA under test */
extern const char *table_name;

/* Starts the random sequence of a test: from the seed of the run, so that tests repeat alone. */
void start_random(void);
uint64_t random_bits(void);
size_t random_below(size_t bound);
float random_uniform(void); /* in (-1, 1) */

/* What a float array holds. */
typedef enum contents {
    ORDINARY, /* uniform in (-1, 1), now and then 0 */
    WIDE,     /* many magnitudes, from 2^-20 to 2^20 */
    DENORMAL, /* zeros and denormals among numbers around 1 */
    SPECIAL,  /* a few NaN, Inf and -Inf among ordinary numbers */
    CONTENTS_COUNT
} contents;

void fill(float *x, size_t n, contents kind);

/* Shifts that are worth trying for elements of `element` bytes: one at the page end, one elsewhere. */
size_t random_shift(size_t element);

void *place(const void *data, size_t bytes, size_t shift); /* a guarded copy of data; of 0xff bytes where data is NULL */
void release_buffers(void);                                /* checks what lies around the buffers, frees all */

void *allocate(size_t bytes); /* ordinary memory, never NULL; freed by release_buffers() */

void describe(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_failure(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Fails unless got is within bound of expected; NaN equals NaN only, Inf equals the same Inf only. An expected value
 * beyond the largest float counts as Inf. */
void expect_near(const char *what, size_t position, float got, double expected, double bound);

/* Fails unless both are the same bytes. */
void expect_same(const char *what, const void *first, const void *second, size_t bytes);

/* Fails unless bytes of x are all 0xff: the gap between two rows of an output. */
void expect_untouched(const char *what, const void *x, size_t bytes);

size_t row_alignment(dp_type type);
const char *type_name(dp_type type);

TCase *table_tests(void);
TCase *convert_tests(void);
TCase *scores_tests(void);
TCase *codes_tests(void);
TCase *signs_tests(void);
TCase *rows_tests(void);
TCase *softmax_tests(void);
TCase *select_tests(void);
TCase *rank_tests(void);
TCase *dense_tests(void);

#endif
