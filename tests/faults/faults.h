/* Faults on demand: the linker puts these functions before those of the system and of the libraries that the code under
 * test calls (see meson.build: --wrap), so that the n-th call from now on fails; and what was taken is counted. */
#ifndef TESTS_FAULTS_FAULTS_H
#define TESTS_FAULTS_FAULTS_H

#include <stdbool.h>

/* Calls are counted from now on, in all threads; number n fails (the first is 1; 0: none), and all later ones, too, if
 * `for_good`. */
void faults_arm(long n, bool for_good);

/* Ends that; returns how many failed. */
long faults_disarm(void);

/* Calls since faults_arm that took memory, opened, read, wrote, closed or renamed a file, or asked hwloc or oneDNN for something. */
long faults_counted(void);

/* What is held at present. */
typedef struct faults_held {
    long blocks, mapped_bytes, files, descriptors, topologies, bitmaps;
} faults_held;
faults_held faults_held_now(void);

#endif
