/* code_logits: exact, as its contract says. */
#include "harness.h"
#include "oracle.h"

#include <math.h>
#include <string.h>

/* What a call reads, each in a buffer of its own. */
typedef struct codes_case {
    dp_code_queries q;
    size_t skip, n, group_bytes, groups;
    int8_t *arranged;
    int32_t *sums;
    float *factor;
    uint8_t *codes, *steps;
    uint32_t step_base;
} codes_case;

static codes_case random_case(size_t heads, size_t d, size_t skip, size_t n, contents kind, int extreme)
{
    codes_case c = {.skip = skip, .n = n, .group_bytes = 2 * d};
    c.groups = n ? (skip + n + DP_CODE_GROUP - 1) / DP_CODE_GROUP : 0;
    c.arranged = allocate(heads * 4 * d);
    c.sums = allocate(heads * sizeof *c.sums);
    c.factor = allocate(heads * sizeof *c.factor);
    c.steps = allocate(skip + n);
    c.step_base = (1 + (uint32_t)random_below(238)) << 23;
    c.codes = allocate(c.groups * c.group_bytes);
    fill(c.factor, heads, kind);
    for (size_t i = 0; i < skip + n; i++) c.steps[i] = (uint8_t)random_below(256);
    for (size_t h = 0; h < heads; h++) {
        c.sums[h] = 0;
        for (size_t j = 0; j < d; j++) { /* the largest sums, too */
            const int8_t x = extreme ? (int8_t)(extreme * 127) : (int8_t)((int)random_below(255) - 127);
            c.sums[h] += x;
            for (size_t t = 0; t < DP_CODE_GROUP; t++) c.arranged[h * 4 * d + j / 4 * 16 + t * 4 + j % 4] = x;
        }
    }
    for (size_t i = 0; i < c.groups * c.group_bytes; i++) c.codes[i] = extreme ? 0xff : (uint8_t)random_below(256);
    c.q = (dp_code_queries){.heads = heads, .d = d};
    return c;
}

/* The call, its buffers at the end of their pages or somewhere else. */
static void call(const codes_case *c, size_t run, float *out, size_t out_stride)
{
    const size_t heads = c->q.heads, d = c->q.d;
    const dp_code_queries q = {.heads = heads,
                               .d = d,
                               .q = place(c->arranged, heads * 4 * d, run * random_shift(1)),
                               .sum_of_q = place(c->sums, heads * sizeof *c->sums, run ? random_shift(4) : 0),
                               .factor = place(c->factor, heads * sizeof *c->factor, run ? random_shift(4) : 0)};
    /* steps before the first token are no one's */
    const dp_code_tokens tokens = {.codes = place(c->codes, c->groups * c->group_bytes, run * random_shift(1)),
                                   .step = (uint8_t *)place(c->steps + c->skip, c->n, run * random_shift(1)) - c->skip,
                                   .step_base = c->step_base,
                                   .skip = c->skip,
                                   .n = c->n,
                                   .ahead = (const void *)(uintptr_t)(run * 64), /* nobody's memory */
                                   .ahead_lines = run * random_below(100)};
    kernels.code_logits(&q, &tokens, out, out_stride);
}

/* factor * step * the exact sum of token t. */
static float expected_logit(const codes_case *c, size_t h, size_t t)
{
    const size_t d = c->q.d;
    const uint8_t *const group = c->codes + t / DP_CODE_GROUP * c->group_bytes;
    long sum = 0;
    for (size_t j = 0; j < d; j++) {
        const size_t half = j >= d / 2 ? d / 2 : 0;
        const size_t number = (j - half) / 4 * 16 + t % DP_CODE_GROUP * 4 + (j - half) % 4;
        const int code = half ? group[number] >> 4 : group[number] & 15;
        sum += c->arranged[h * 4 * d + j / 4 * 16 + j % 4] * (2 * code - 15);
    }
    /* 2^(exponent of the base + high half of the byte) * (1 + low half / 16) */
    const float step = ldexpf(1 + (float)(c->steps[t] % 16) / 16, (int)(c->step_base >> 23) - 127 + c->steps[t] / 16);
    return c->factor[h] * step * (float)sum;
}

static void check_code_logits(const codes_case *c)
{
    const size_t heads = c->q.heads, n = c->n, out_stride = n + random_below(20);
    const size_t out_bytes = (heads ? (heads - 1) * out_stride + n : 0) * sizeof(float);
    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        results[run] = place(NULL, out_bytes, run ? random_shift(4) : 0);
        call(c, run, results[run], out_stride);
    }
    expect_same("logits", results[0], results[1], out_bytes);
    for (size_t h = 0; h < heads; h++) {
        for (size_t i = 0; i < n; i++)
            expect_near("code logit", h * out_stride + i, results[0][h * out_stride + i],
                        (double)expected_logit(c, h, c->skip + i), 0);
        if (h + 1 < heads)
            expect_untouched("gap of out", results[0] + h * out_stride + n, (out_stride - n) * sizeof(float));
    }
}

START_TEST(codes_of_all_shapes)
{
    static const size_t dims[] = {8, 16, 24, 40, 64, 72, 96, 128, 136, 256, 264, 504, 512};
    start_random();
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t heads = 0; heads <= 9; heads++) {
            const size_t n = random_below(4) ? random_below(70) : random_below(3), skip = random_below(DP_CODE_GROUP);
            const int extreme = (int)random_below(5) - 2;
            describe("code logits heads %zu d %zu tokens %zu after %zu contents %d extreme %d", heads, dims[i], n, skip,
                     _i, extreme);
            const codes_case c =
                random_case(heads, dims[i], skip, n, (contents)_i, extreme == 1 || extreme == -1 ? extreme : 0);
            check_code_logits(&c);
            release_buffers();
        }
}
END_TEST

TCase *codes_tests(void)
{
    TCase *const tests = tcase_create("codes");
    tcase_add_loop_test(tests, codes_of_all_shapes, 0, CONTENTS_COUNT);
    return tests;
}
