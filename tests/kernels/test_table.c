/* The table itself: complete, and refused where features are missing. */
#include <stddef.h>
#include <string.h>

#include "harness.h"

START_TEST(every_entry_is_set)
{
    describe("entries of the table");
    void (*entries[sizeof kernels / sizeof(void (*)(void))])(void);
    ck_assert_uint_eq(sizeof entries, sizeof kernels);
    memcpy(entries, &kernels, sizeof entries);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (!entries[i] && i != offsetof(dp_kernels, nearest_in_bytes) / sizeof *entries)
            report_failure("entry %zu is missing", i);
    ck_assert_int_eq(kernels.nearest_in_bytes != NULL, strstr(table_name, "vnni") || strstr(table_name, "dotprod"));
}
END_TEST

START_TEST(missing_features_are_refused)
{
    dp_kernels table;
    ck_assert_int_eq(dp_kernels_init(&table, DP_ISA_SCALAR, 0), 0);
    ck_assert_int_eq(dp_kernels_init(&table, DP_ISA_AVX2, 0), -1);
    ck_assert_int_eq(dp_kernels_init(&table, DP_ISA_AVX512, DP_CPU_AVX2), -1);
    ck_assert_int_eq(dp_kernels_init(&table, DP_ISA_NEON, 0), -1);
    ck_assert_int_eq(dp_kernels_init(&table, DP_ISA_AUTO, ~0u), -1);
    ck_assert_int_eq(dp_kernels_init(&table, DP_ISA_COUNT, ~0u), -1);
}
END_TEST

TCase *table_tests(void)
{
    TCase *const tests = tcase_create("table");
    tcase_add_test(tests, every_entry_is_set);
    tcase_add_test(tests, missing_features_are_refused);
    return tests;
}
