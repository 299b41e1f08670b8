/* malformed.c: files that are no model: cut short, with a wrong shape, with damaged bytes. Loading says what is wrong,
 * or loads where the damage does no harm, and never crashes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <check.h>

#include "context.h"
#include "files.h"

static char *original, *damaged;
static size_t length;
static char path[] = "/tmp/doublep-malformed-XXXXXX";
static char error[512];

static void set_up(void)
{
    char name[4096];
    const char *const folder = getenv("DOUBLEP_TEST_DATA");
    snprintf(name, sizeof(name), "%s/needle-12m.q8_0.gguf", folder ? folder : "tests/data");
    original = file_read(name, &length, error, sizeof(error));
    ck_assert_msg(original != NULL, "%s", error);
    damaged = malloc(length);
    const int descriptor = mkstemp(path);
    ck_assert(damaged && descriptor >= 0);
    close(descriptor);
}

static void tear_down(void)
{
    unlink(path);
    free(original);
    free(damaged);
}

/* Loads the first n bytes of `damaged`. */
static model *load(size_t n)
{
    FILE *const file = fopen(path, "wb");
    ck_assert(file != NULL);
    ck_assert_uint_eq(fwrite(damaged, 1, n, file), n);
    ck_assert_int_eq(fclose(file), 0);
    error[0] = '\0';
    return model_load(path, error, sizeof(error));
}

static void check_refused(size_t n, const char *reason)
{
    model *const m = load(n);
    ck_assert_msg(m == NULL, "a damaged file was loaded (%s)", reason);
    ck_assert_msg(strstr(error, reason) != NULL, "the message is \"%s\", must say \"%s\"", error, reason);
}

START_TEST(whole_file_loads)
{
    memcpy(damaged, original, length);
    model *const m = load(length);
    ck_assert_msg(m != NULL, "%s", error);
    model_free(m);
}
END_TEST

START_TEST(short_files_are_refused)
{
    memcpy(damaged, original, length);
    const size_t lengths[] = {0, 1, 4, 23, 24, 100, 1000, 50000, length / 2, length - 1};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        check_refused(lengths[i], path);
}
END_TEST

/* A u32 of the metadata, changed. */
static const struct {
    const char *key;
    uint32_t value;
    const char *reason;
} wrong_numbers[] = {
    {"llama.embedding_length", 392, "token_embd.weight"},
    {"llama.embedding_length", 0, "llama.embedding_length"},
    {"llama.block_count", 7, "blk.6."},
    {"llama.block_count", 5, "tensors"},
    {"llama.block_count", 0xffffffff, "llama.block_count"},
    {"llama.feed_forward_length", 1025, "ffn_gate"},
    {"llama.attention.head_count", 7, "heads"},
    {"llama.attention.head_count", 16, "attn_q"},
    {"llama.attention.head_count_kv", 4, "attn_k"},
    {"llama.attention.head_count_kv", 3, "heads"},
    {"llama.attention.key_length", 68, "multiple of 8"},
    {"llama.attention.key_length", 32, "llama.rope.dimension_count"},
    {"llama.attention.value_length", 128, "attn_"},
    {"llama.rope.dimension_count", 63, "even"},
    {"llama.rope.dimension_count", 128, "llama.rope.dimension_count"},
    {"llama.context_length", 0, "llama.context_length"},
};

START_TEST(wrong_shapes_are_refused)
{
    memcpy(damaged, original, length);
    const char *const key = wrong_numbers[_i].key;
    char *const found = memmem(damaged, length, key, strlen(key));
    ck_assert_msg(found != NULL, "%s is not in the file", key);
    /* The key is followed by the type (4, a u32) and the value; keys that start alike are told apart by their length. */
    uint32_t type;
    char *const after = found + strlen(key);
    memcpy(&type, after, sizeof(type));
    ck_assert_uint_eq(type, 4);
    memcpy(after + 4, &wrong_numbers[_i].value, sizeof(uint32_t));
    check_refused(length, wrong_numbers[_i].reason);
}
END_TEST

START_TEST(other_architectures_are_refused)
{
    memcpy(damaged, original, length);
    char *const key = memmem(damaged, length, "general.architecture", 20);
    ck_assert(key != NULL);
    char *const name = memmem(key, 64, "llama", 5);
    ck_assert(name != NULL);
    memcpy(name, "gemma", 5);
    check_refused(length, "gemma");
}
END_TEST

START_TEST(unknown_tensors_are_refused)
{
    memcpy(damaged, original, length);
    char *const name = memmem(damaged, length, "blk.3.ffn_up.weight", 19);
    ck_assert(name != NULL);
    memcpy(name, "blk.3.ffn_xp.weight", 19);
    check_refused(length, "blk.3.ffn_up.weight is missing");
}
END_TEST

/* Damage anywhere in the header: where it is noticed there is a message; where not, the model must run. */
START_TEST(damaged_bytes_never_crash)
{
    const char *const last_name = memmem(original, length, "blk.5.ffn_down.weight", 21);
    ck_assert(last_name != NULL);
    const size_t header = (size_t)(last_name - original) + 64;
    uint64_t random = 20251;
    size_t refused = 0;
    for (int i = 0; i < 150; i++) {
        memcpy(damaged, original, length);
        /* Half of the damage goes to the first 2 KiB, where the lengths and shapes are. */
        for (int j = 0; j < 1 + i % 3; j++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const size_t range = i % 2 ? header : 2048;
            damaged[(random >> 33) % range] = (char)(random >> 20);
        }
        model *const m = load(length);
        if (!m) {
            ck_assert_msg(error[0] != '\0', "no message");
            refused++;
            continue;
        }
        model_context_config config;
        model_context_config_init(&config, m);
        model_context *const context = model_context_create(m, &config, error, sizeof(error));
        const int32_t tokens[] = {0, 1, 2};
        if (context)
            model_prefill(context, tokens, 3, NULL, NULL, NULL, NULL, error, sizeof(error));
        model_context_free(context);
        model_free(m);
    }
    printf("%zu of 150 damaged files refused\n", refused);
    ck_assert_uint_gt(refused, 0);
}
END_TEST

int main(void)
{
    TCase *const tests = tcase_create("malformed");
    tcase_set_timeout(tests, 280);
    tcase_add_unchecked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, whole_file_loads);
    tcase_add_test(tests, short_files_are_refused);
    tcase_add_loop_test(tests, wrong_shapes_are_refused, 0, sizeof(wrong_numbers) / sizeof(wrong_numbers[0]));
    tcase_add_test(tests, other_architectures_are_refused);
    tcase_add_test(tests, unknown_tensors_are_refused);
    tcase_add_test(tests, damaged_bytes_never_crash);
    Suite *const suite = suite_create("malformed");
    suite_add_tcase(suite, tests);
    SRunner *const runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK); /* OpenMP's threads do not survive a fork */
    srunner_run_all(runner, CK_NORMAL);
    const int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
