/* signs_exceed: exact, as its contract says, to the last bit of its limits. */
#include "harness.h"
#include "oracle.h"

#include <math.h>

/* What a call reads, each in a buffer of its own. */
typedef struct signs_case {
    size_t heads, d, n, group_bytes, groups;
    uint8_t *table, *signs, *steps;
    float *centre, *factor, *limit;
    uint32_t step_base;
} signs_case;

static signs_case random_case(size_t heads, size_t d, size_t n, contents kind, int extreme)
{
    signs_case c = {.heads = heads, .d = d, .n = n, .group_bytes = 2 * d};
    c.groups = (n + DP_SIGN_GROUP - 1) / DP_SIGN_GROUP;
    c.table = allocate(heads * 4 * d);
    c.centre = allocate(heads * sizeof *c.centre);
    c.factor = allocate(heads * sizeof *c.factor);
    c.limit = allocate(heads * sizeof *c.limit);
    c.steps = allocate(n);
    c.signs = allocate(c.groups * c.group_bytes);
    c.step_base = (1 + (uint32_t)random_below(238)) << 23;
    fill(c.factor, heads, kind);
    fill(c.centre, heads, kind);
    for (size_t h = 0; h < heads; h++)
        if (random_below(4)) c.centre[h] = (float)random_below(16 * d + 1) / 4;
    for (size_t i = 0; i < n; i++) c.steps[i] = (uint8_t)random_below(256);
    for (size_t i = 0; i < heads * 4 * d; i++) /* the largest sums, too */
        c.table[i] = (uint8_t)(extreme ? DP_SIGN_MOST : random_below(DP_SIGN_MOST + 1));
    for (size_t i = 0; i < c.groups * c.group_bytes; i++) c.signs[i] = (uint8_t)random_below(256);
    return c;
}

/* The call, its buffers at the end of their pages or somewhere else. */
static int call(const signs_case *c, size_t run, uint8_t *marks)
{
    const dp_sign_queries q = {.heads = c->heads,
                               .d = c->d,
                               .table = place(c->table, c->heads * 4 * c->d, run * random_shift(1)),
                               .centre = place(c->centre, c->heads * sizeof(float), run ? random_shift(4) : 0),
                               .factor = place(c->factor, c->heads * sizeof(float), run ? random_shift(4) : 0),
                               .limit = place(c->limit, c->heads * sizeof(float), run ? random_shift(4) : 0)};
    const dp_sign_tokens tokens = {.signs = place(c->signs, c->groups * c->group_bytes, run * random_shift(1)),
                                   .step = place(c->steps, c->n, run * random_shift(1)),
                                   .step_base = c->step_base,
                                   .n = c->n,
                                   .ahead = (const void *)(uintptr_t)(run * 64), /* nobody's memory */
                                   .ahead_lines = run * random_below(100)};
    return kernels.signs_exceed(&q, &tokens, marks);
}

/* (factor * step) * (the exact sum of token t - centre). */
static float expected_logit(const signs_case *c, size_t h, size_t t)
{
    const uint8_t *const group = c->signs + t / DP_SIGN_GROUP * c->group_bytes;
    long sum = 0;
    for (size_t j = 0; j < c->d; j += 4) {
        size_t set = 0;
        for (size_t i = j; i < j + 4; i++)
            set |= (size_t)(group[i / 8 * DP_SIGN_GROUP + t % DP_SIGN_GROUP] >> i % 8 & 1) << (i - j);
        sum += c->table[h * 4 * c->d + (j % 8 ? 2 * c->d : 0) + j / 8 * 16 + set];
    }
    /* 2^(exponent of the base + high half of the byte) * (1 + low half / 16) */
    const float step = ldexpf(1 + (float)(c->steps[t] % 16) / 16, (int)(c->step_base >> 23) - 127 + c->steps[t] / 16);
    const float factor = c->factor[h] * step, above = (float)sum - c->centre[h];
    return factor * above;
}

/* Limits at the heads' largest logits are kept; a bit below the largest but one, or anything below NaN, is not. */
typedef enum change { NONE, LOWER, MIDDLE, INFINITE, NOT_A_NUMBER, CHANGES } change;

static void set_limits(const signs_case *c, change of_one)
{
    for (size_t h = 0; h < c->heads; h++) {
        c->limit[h] = -INFINITY;
        for (size_t i = 0; i < c->n; i++) {
            const float logit = expected_logit(c, h, i);
            if (logit > c->limit[h]) c->limit[h] = logit;
        }
    }
    if (!c->heads || !c->n) return;
    const size_t h = random_below(c->heads);
    if (of_one == LOWER)
        c->limit[h] = nextafterf(c->limit[h], -INFINITY);
    else if (of_one == MIDDLE)
        c->limit[h] = expected_logit(c, h, random_below(c->n));
    else if (of_one == INFINITE)
        c->limit[h] = INFINITY;
    else if (of_one == NOT_A_NUMBER)
        c->limit[h] = NAN;
}

static void check(const signs_case *c, change of_one)
{
    set_limits(c, of_one);
    uint8_t *const expected = allocate(c->n);
    int any = 0;
    for (size_t i = 0; i < c->n; i++) {
        expected[i] = 0;
        for (size_t h = 0; h < c->heads; h++) expected[i] |= !(expected_logit(c, h, i) <= c->limit[h]);
        any |= expected[i];
    }
    for (size_t run = 0; run < 2; run++) {
        uint8_t *const marks = place(NULL, c->n, run * random_shift(1));
        expect_near("any beyond its limit", run, (float)call(c, run, marks), any, 0);
        expect_same("marks", marks, expected, c->n);
    }
}

START_TEST(signs_of_all_shapes)
{
    static const size_t dims[] = {8, 16, 24, 40, 64, 72, 96, 128, 136, 256, 264, 504, 512};
    start_random();
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t heads = 0; heads <= 9; heads++)
            for (change of_one = NONE; of_one < CHANGES; of_one++) {
                const size_t n = random_below(4) ? random_below(70) : random_below(3);
                const int extreme = random_below(4) == 0;
                describe("signs heads %zu d %zu tokens %zu contents %d extreme %d change %d", heads, dims[i], n, _i,
                         extreme, (int)of_one);
                const signs_case c = random_case(heads, dims[i], n, (contents)_i, extreme);
                check(&c, of_one);
                release_buffers();
            }
}
END_TEST

TCase *signs_tests(void)
{
    TCase *const tests = tcase_create("signs");
    tcase_add_loop_test(tests, signs_of_all_shapes, 0, CONTENTS_COUNT);
    return tests;
}
