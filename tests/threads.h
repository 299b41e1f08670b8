/* How many threads the process has. */
#ifndef TESTS_THREADS_H
#define TESTS_THREADS_H

#include <check.h>
#include <dirent.h>

static inline int threads_of_this_process(void)
{
    DIR *const folder = opendir("/proc/self/task");
    ck_assert_ptr_nonnull(folder);
    int n = -2; /* . and .. */
    while (readdir(folder)) n++;
    closedir(folder);
    return n;
}

#endif
