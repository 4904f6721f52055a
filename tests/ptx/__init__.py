"""Executes the PTX that Triton makes of a kernel, with checks that no device makes.

parser      text -> Program: instructions, labels, registers
numbers     PTX's types as numpy arrays, and its roundings
approximate results that the architecture does not fix, moved within their documented error
arithmetic  what one lane computes: opcode -> function of arrays
collective  what a warp computes together: shuffles, reductions, matrices
memory      tensors and shared memory, and what may be touched of them
races       who touched what since the last barrier
machine     lanes, program counters, barriers
driver      all of it as Triton's driver: CPU tensors through the real JIT path
"""
