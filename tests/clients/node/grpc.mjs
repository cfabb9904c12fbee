// Calls the bridge by gRPC as npm's packages do, from the protos alone.
//
//     node grpc.mjs <address> read <SubscribeRequest, JSON>
//     node grpc.mjs <address> produceMany <ProduceManyRequest, JSON>
//     node grpc.mjs <address> subscribeMany <SubscribeManyRequest, JSON>
//
// Says what comes as lines of JSON, and last {"status": …, "reason": …, "metadata": …}: how the call ended.
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import { fromJSON, loadSync } from "@grpc/proto-loader";

const [address, what, request] = process.argv.slice(2);
const definition = loadSync("llmbridge/v1/bridge_service.proto", {
  includeDirs: [fileURLToPath(new URL("../../../protos", import.meta.url))],
  arrays: true,
  longs: Number,
  enums: String,
});
const rpc = fromJSON({
  nested: {
    Any: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
    Status: { fields: { details: { rule: "repeated", type: "Any", id: 3 } } },
    ErrorInfo: {
      fields: {
        reason: { type: "string", id: 1 },
        domain: { type: "string", id: 2 },
        metadata: { keyType: "string", type: "string", id: 3 },
      },
    },
  },
});
const { BridgeService } = grpc.loadPackageDefinition(definition).llmbridge.v1;
const bridge = new BridgeService(address, grpc.credentials.createInsecure());
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

function told(code, statusDetails) {
  const details = statusDetails?.length ? rpc.Status.deserialize(statusDetails).details : [];
  const info = details.find((detail) => detail.type_url === "type.googleapis.com/google.rpc.ErrorInfo");
  return { status: grpc.status[code], ...(info && rpc.ErrorInfo.deserialize(info.value)) };
}

const programs = {
  async read(asked) {
    for await (const message of bridge.Subscribe(asked)) {
      say(message);
    }
  },

  // Ends its side when every append has its receipt.
  async produceMany(asked) {
    const call = bridge.ProduceMany();
    call.write(asked);
    let waiting = asked.appends.length;
    for await (const { receipts } of call) {
      for (const { failure, ...receipt } of receipts) {
        say({ ...receipt, failure: failure && told(failure.code, failure.statusDetails) });
      }
      waiting -= receipts.length;
      if (waiting === 0) {
        call.end();
      }
    }
  },

  // Gives back what each message took of its subscription's credit; ends its side when all are over.
  async subscribeMany(asked) {
    const { serialize } = definition["llmbridge.v1.SubscribeResponse"];
    const call = bridge.SubscribeMany();
    call.write(asked);
    const open = new Set(asked.starts.map((start) => start.subscription));
    for await (const { deliveries } of call) {
      for (const { subscriptions, message, end } of deliveries) {
        const bytes = message && serialize(message).length;
        say({ subscriptions, message, bytes, end: end && told(end.code, end.statusDetails) });
        if (end || message?.completion) {
          subscriptions.forEach((subscription) => open.delete(subscription));
        } else if (message) {
          call.write({ credits: subscriptions.map((subscription) => ({ subscription, bytes })) });
        }
      }
      if (open.size === 0) {
        call.end();
      }
    }
  },
};

try {
  await programs[what](JSON.parse(request));
  say({ status: "OK" });
} catch (error) {
  say(told(error.code, error.metadata?.get("grpc-status-details-bin")[0]));
}
bridge.close();
