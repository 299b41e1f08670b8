/* The system refuses to start threads. OpenMP's runtime then ends the process, with a message and at once: nothing hangs,
 * nothing crashes (doublep.h says so). A runtime with one thread does not notice. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

static bool refusing;

/* Found by libgomp, too, before libc's. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *argument)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return refusing ? EAGAIN : real(thread, attr, fn, argument);
}

static void compute(int n_threads)
{
    rng r = {71};
    cache c = cache_create(&r, 1500, 2, 16, 16, DP_BF16);
    dp_runtime *const rt = runtime_with(n_threads, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_BF16);
    dp_sequence *s;
    float q[32], out[32];
    make_queries(&r, &c, 1, 2, q);
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 1500, 500);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}

/* How a process ends that computes without being given threads; what it says is in text. */
static int end_of_child(int n_threads, char *text, size_t size)
{
    int channel[2], status;
    ck_assert_int_eq(pipe(channel), 0);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (!child) {
        dup2(channel[1], STDERR_FILENO);
        alarm(60); /* ends by a signal if it hangs */
        refusing = true;
        compute(n_threads);
        _exit(0);
    }
    close(channel[1]);
    ssize_t n, have = 0;
    while ((n = read(channel[0], text + have, size - 1 - (size_t)have)) > 0) have += n;
    text[have] = '\0';
    close(channel[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return status;
}

START_TEST(no_threads)
{
    char text[512];
    int status = end_of_child(1, text, sizeof text);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    status = end_of_child(3, text, sizeof text);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) != 0);
    ck_assert_msg(*text != '\0', "the process ended without a word");
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("no threads");
    TCase *const tc = tcase_create("no threads");
    tcase_set_timeout(tc, 150);
    tcase_add_test(tc, no_threads);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
