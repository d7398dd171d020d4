// What a program that only runs a trained layer includes.
#include <sluice/sluice.hpp>

int main() { return 0; }
