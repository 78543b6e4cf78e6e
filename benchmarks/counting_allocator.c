/* Counts what Python's allocators are asked for in this process, into shared memory that `allocations.py` reads.
 *
 * Loaded by `allocation_probe/sitecustomize.py` in every process of the measured cluster. Objects that come from a free
 * list of their type (floats, small tuples and lists, frames) never reach an allocator, and cost next to nothing.
 */
#include <Python.h>

static PyMemAllocatorEx real[2];
static unsigned long long *counts; /* blocks taken, their bytes, blocks given back */

static void *counted_malloc(void *which, size_t size) {
    PyMemAllocatorEx *own = which;
    __atomic_fetch_add(&counts[0], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&counts[1], size, __ATOMIC_RELAXED);
    return own->malloc(own->ctx, size);
}

static void *counted_calloc(void *which, size_t number, size_t size) {
    PyMemAllocatorEx *own = which;
    __atomic_fetch_add(&counts[0], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&counts[1], number * size, __ATOMIC_RELAXED);
    return own->calloc(own->ctx, number, size);
}

static void *counted_realloc(void *which, void *block, size_t size) {
    PyMemAllocatorEx *own = which;
    if (block == NULL) {
        __atomic_fetch_add(&counts[0], 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&counts[1], size, __ATOMIC_RELAXED);
    }
    return own->realloc(own->ctx, block, size);
}

static void counted_free(void *which, void *block) {
    PyMemAllocatorEx *own = which;
    if (block != NULL)
        __atomic_fetch_add(&counts[2], 1, __ATOMIC_RELAXED);
    own->free(own->ctx, block);
}

/* From now on, count into `where`: three numbers of 64 bits. */
void count_into(unsigned long long *where) {
    static const PyMemAllocatorDomain domains[2] = {PYMEM_DOMAIN_OBJ, PYMEM_DOMAIN_MEM};
    counts = where;
    for (int i = 0; i < 2; i++) {
        PyMem_GetAllocator(domains[i], &real[i]);
        PyMemAllocatorEx wrapped = {&real[i], counted_malloc, counted_calloc, counted_realloc, counted_free};
        PyMem_SetAllocator(domains[i], &wrapped);
    }
}
