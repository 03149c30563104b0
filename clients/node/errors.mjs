// The errors of the client.
import { constants } from 'node:os'

// Any failure; `errno` is positive, and `code` its name, where there is one.
export class MonitorError extends Error {
  constructor(message, code) {
    super(message)
    this.name = this.constructor.name
    this.code = code
    this.errno = constants.errno[code]
  }
}

// A refusal by the agent: the errno that the kernel would give, and the agent's text.
export class RefusedError extends MonitorError {}

// The end of the agent, or of its connection.
export class EndedError extends MonitorError {}

// An answer that this version does not understand.
export class AnswerError extends MonitorError {}

// A wait that took longer than its time-out.
export class TimeoutError extends MonitorError {}
