/// Macros that widely used headers leave behind, each in the form that its header gives it. Every public header compiles after them.
#pragma once


// Qt
#define signals public
#define slots
#define emit
#define foreach(a, b) for (a : b)
#define forever for (;;)

// Windows
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define near
#define far
#define small char
#define interface struct
#define IN
#define OUT
#define OPTIONAL
#define CONST const
#define VOID void
#define TRUE 1
#define FALSE 0
#define ERROR 0
#define NO_ERROR 0
#define DELETE 0x10000
#define STRICT 1
#define ABSOLUTE 1
#define RELATIVE 2
#define DIFFERENCE 11
#define Yield()
#define GetObject GetObjectA
#define CreateFile CreateFileA
#define DeleteFile DeleteFileA
#define CopyFile CopyFileA
#define MoveFile MoveFileA
#define GetMessage GetMessageA
#define GetCurrentTime() GetTickCount()
#define pascal
#define cdecl
#define hyper long
#define rad1 0x1
#define rad2 0x2
#define DOUBLE 1
#define FLOAT 2

// X11
#define None 0L
#define Bool int
#define Status int
#define True 1
#define False 0
#define Always 2
#define Success 0
#define Below 1
#define Above 0
#define Complex 0
#define Convex 2
#define CursorShape 0
#define Unsorted 0
#define KeyPress 2
#define FocusIn 9
#define Expose 12
#define GrayScale 1
#define StaticColor 2
#define Opposite 4

// macOS AssertMacros.h, Unreal
#define check(x) do { if (!(x)) abort(); } while (0)
#define verify(x) do { if (!(x)) abort(); } while (0)
#define require(x, label) do { if (!(x)) goto label; } while (0)
#define check_noerr(x) check((x) == 0)
#define verify_noerr(x) verify((x) == 0)
#define require_noerr(x, label) require((x) == 0, label)
#define ensure(x) (!!(x))
#define TEXT(x) L##x
#define nil nullptr
#define Nil nullptr
#define YES 1
#define NO 0

// Arduino
#define abs(x) ((x) > 0 ? (x) : -(x))
#define round(x) ((x) >= 0 ? (long)((x) + 0.5) : (long)((x) - 0.5))
#define radians(x) ((x) * 0.017453292519943295)
#define degrees(x) ((x) * 57.29577951308232)
#define sq(x) ((x) * (x))
#define constrain(x, a, b) ((x) < (a) ? (a) : ((x) > (b) ? (b) : (x)))
#define bit(b) (1UL << (b))
#define lowByte(w) ((w) & 0xff)
#define highByte(w) ((w) >> 8)
#define bitRead(v, b) (((v) >> (b)) & 1)
#define bitSet(v, b) ((v) |= (1UL << (b)))
#define bitClear(v, b) ((v) &= ~(1UL << (b)))
#define bitWrite(v, b, x) ((x) ? bitSet(v, b) : bitClear(v, b))
#define interrupts() sei()
#define noInterrupts() cli()
#define F(x) (x)
#define HIGH 1
#define LOW 0
#define INPUT 0
#define OUTPUT 1
#define DEFAULT 1
#define EXTERNAL 0
#define INTERNAL 3
#define PI 3.1415926535897932384626433832795
#define HALF_PI 1.5707963267948966
#define TWO_PI 6.283185307179586
#define DEG_TO_RAD 0.017453292519943295
#define EULER 2.718281828459045
#define SERIAL 0
#define DISPLAY 1
#define CHANGE 1
#define FALLING 2
#define RISING 3
#define B0 0
#define B1 1
#define B10 2
#define A0 14

// POSIX and friends: complex.h, sysmacros.h, curses.h, ctype of old C libraries, old compilers
#define I _Complex_I
#define major(d) ((d) >> 8)
#define minor(d) ((d) & 0xff)
#define makedev(a, b) (((a) << 8) | (b))
#define unix 1
#define linux 1
#define DOMAIN 1
#define OVERFLOW 3
#define UNDERFLOW 4
#define HUGE 3.40282347e+38F
#define ECHO 8
#define _B 1
#define _C 2
#define _L 4
#define _N 8
#define _P 16
#define _S 32
#define _U 64
#define _X 128

// Kernel style and logging
#define likely(x) (!!(x))
#define unlikely(x) (!!(x))
#define DEBUG 1
#define TRACE 1
#define INFO 1
#define WARNING 1
#define FATAL 1
#define UNUSED(x) (void)(x)
