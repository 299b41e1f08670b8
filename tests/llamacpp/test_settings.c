/* The plugin's environment variables: what they mean, and that nonsense is refused with the variable's name. */
#include <stdlib.h>
#include <string.h>

#include "../suite.h"
#include "doublep/doublep.h"
#include "llamacpp/settings.h"

static plugin_settings s;
static char why[128];

static bool with(const char *name, const char *value)
{
    setenv(name, value, 1);
    const bool ok = plugin_settings_read(&s, why, sizeof why);
    unsetenv(name);
    return ok;
}

START_TEST(defaults)
{
    ck_assert(plugin_settings_read(&s, why, sizeof why));
    ck_assert(!s.off && !s.stats);
    ck_assert_float_eq(s.epsilon, 0.07f);
    ck_assert_uint_eq(s.min_context, 2048);
    uint64_t total;
    ck_assert_int_eq(dp_system_memory(&total, NULL), DP_OK);
    ck_assert_uint_eq(s.memory, total / 2);
    ck_assert(!s.int8);
    for (int l = 0; l < PLUGIN_LAYERS; l++) ck_assert(!s.dense[l]);
    ck_assert(with("DOUBLEP_EPSILON", "")); /* as if not set */
    ck_assert_float_eq(s.epsilon, 0.07f);
}
END_TEST

START_TEST(values)
{
    ck_assert(with("DOUBLEP", "off") && s.off);
    ck_assert(with("DOUBLEP", "on") && !s.off);
    ck_assert(with("DOUBLEP_STATS", "1") && s.stats);
    ck_assert(with("DOUBLEP_STATS", "0") && !s.stats);
    ck_assert(with("DOUBLEP_EPSILON", "0") && s.epsilon == 0);
    ck_assert(with("DOUBLEP_EPSILON", "0.5") && s.epsilon == 0.5f);
    ck_assert(with("DOUBLEP_MIN_CONTEXT", "100") && s.min_context == 100);
    ck_assert(with("DOUBLEP_MEMORY", "3000000") && s.memory == 3000000);
    ck_assert(with("DOUBLEP_MEMORY", "1M") && s.memory == 1 << 20);
    ck_assert(with("DOUBLEP_MEMORY", "3000K") && s.memory == 3000 << 10);
    ck_assert(with("DOUBLEP_KV", "int8") && s.int8);
    ck_assert(with("DOUBLEP_KV", "cache") && !s.int8);
    ck_assert(with("DOUBLEP_MEMORY", "1.5G") && s.memory == 3ull << 29);
    ck_assert(with("DOUBLEP_DENSE_LAYERS", "0,3-5,7"));
    for (int l = 0; l < 10; l++) ck_assert_int_eq(s.dense[l], l == 0 || (l >= 3 && l <= 5) || l == 7);
}
END_TEST

START_TEST(nonsense)
{
    static const char *const pairs[][2] = {
        {"DOUBLEP", "maybe"},
        {"DOUBLEP_EPSILON", "2"},
        {"DOUBLEP_EPSILON", "-0.1"},
        {"DOUBLEP_EPSILON", "nan"},
        {"DOUBLEP_EPSILON", "0.1x"},
        {"DOUBLEP_MIN_CONTEXT", "-1"},
        {"DOUBLEP_MIN_CONTEXT", "9e9"},
        {"DOUBLEP_MEMORY", "-5"},
        {"DOUBLEP_MEMORY", "0"},
        {"DOUBLEP_MEMORY", "8"}, /* gigabytes, presumably */
        {"DOUBLEP_MEMORY", "1023K"},
        {"DOUBLEP_MEMORY", "nan"},
        {"DOUBLEP_KV", "f16"},
        {"DOUBLEP_MEMORY", "5X"},
        {"DOUBLEP_MEMORY", "1e30"},
        {"DOUBLEP_MEMORY", "M"},
        {"DOUBLEP_DENSE_LAYERS", "a"},
        {"DOUBLEP_DENSE_LAYERS", "5-3"},
        {"DOUBLEP_DENSE_LAYERS", "1024"},
        {"DOUBLEP_DENSE_LAYERS", "1;2"},
        {"DOUBLEP_DENSE_LAYERS", "-2"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        ck_assert_msg(!with(pairs[i][0], pairs[i][1]), "%s=%s was taken", pairs[i][0], pairs[i][1]);
        ck_assert_ptr_nonnull(strstr(why, pairs[i][0]));
    }
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("settings");
    TCase *const tcase = tcase_create("settings");
    tcase_add_test(tcase, defaults);
    tcase_add_test(tcase, values);
    tcase_add_test(tcase, nonsense);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
